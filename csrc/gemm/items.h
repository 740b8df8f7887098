// The work of a grouped GEMM in items: of every group its column blocks, of each of those its rows in parts. A
// block's parts lie next to each other, so that its weights come from memory once. Included inside a kernel's
// namespace.

// Rows of one part: their sums (64 columns of f32) stay in the second-level cache.
constexpr int64_t kRowsPerItem = 256;

// Products below which waking threads (some 5 us) costs more than it saves.
constexpr int64_t kWorthThreads = 1 << 20;

struct Items {
  int64_t groups, blocks;   // column blocks of a group
  const int64_t* first;     // [groups + 1] item that a group starts with
  int64_t most_rows;        // of an item

  struct Item { int64_t group, block, first_row, rows; };
  int64_t count() const { return first[groups]; }
};

// rows_of(g): how many rows group g has.
template <class RowsOf>
static Items make_items(int64_t groups, int64_t blocks, Scratch& scratch, const RowsOf& rows_of) {
  int64_t* const first = scratch.take<int64_t>(groups + 1);
  int64_t most = 0;
  first[0] = 0;
  for (int64_t g = 0; g < groups; ++g) {
    first[g + 1] = first[g] + blocks * ceil_div(rows_of(g), kRowsPerItem);
    most = max(most, min(kRowsPerItem, rows_of(g)));
  }
  return {groups, blocks, first, most};
}

template <class RowsOf>
static Items::Item find_item(const Items& items, int64_t i, const RowsOf& rows_of) {
  int64_t g = 0, past = items.groups;  // the last group that starts at or before the item: never an empty one
  while (past - g > 1) {
    const int64_t middle = (g + past) / 2;
    (items.first[middle] <= i ? g : past) = middle;
  }
  const int64_t rows = rows_of(g), parts = ceil_div(rows, kRowsPerItem), local = i - items.first[g];
  const int64_t part = local % parts, start = rows * part / parts;
  return {g, local / parts, start, rows * (part + 1) / parts - start};
}
