// The work of a grouped GEMM in items: of every group its rows in parts, of each of those the column blocks. So
// the rows stay in the last-level cache while the weights pass by, once for many rows. Included inside a kernel's
// namespace.

// Whether that many products are worth waking threads, which takes some 5 us.
static bool worth_threads(const gemm::Blocking& blocking, int64_t products) {
  constexpr int64_t kLeast = 1 << 20;
  return blocking.threads != 1 && products >= kLeast;
}

struct Items {
  int64_t groups, blocks;   // column blocks of a group
  int64_t item_rows;        // at most, of a part
  const int64_t* first;     // [groups + 1] item that a group starts with
  int64_t most_rows;        // of an item, as it is

  struct Item { int64_t group, block, first_row, rows; };
  int64_t count() const { return first[groups]; }
};

// rows_of(g): how many rows group g has.
template <class RowsOf>
static Items make_items(int64_t groups, int64_t blocks, int64_t item_rows, Scratch& scratch, const RowsOf& rows_of) {
  int64_t* const first = scratch.take<int64_t>(groups + 1);
  int64_t most = 0;
  first[0] = 0;
  for (int64_t g = 0; g < groups; ++g) {
    first[g + 1] = first[g] + blocks * ceil_div(rows_of(g), item_rows);
    most = max(most, min(item_rows, rows_of(g)));
  }
  return {groups, blocks, item_rows, first, most};
}

template <class RowsOf>
static Items::Item find_item(const Items& items, int64_t i, const RowsOf& rows_of) {
  int64_t g = 0, past = items.groups;  // the last group that starts at or before the item: never an empty one
  while (past - g > 1) {
    const int64_t middle = (g + past) / 2;
    (items.first[middle] <= i ? g : past) = middle;
  }
  const int64_t rows = rows_of(g), parts = ceil_div(rows, items.item_rows), local = i - items.first[g];
  const int64_t part = local / items.blocks, start = rows * part / parts;
  return {g, local % items.blocks, start, rows * (part + 1) / parts - start};
}
