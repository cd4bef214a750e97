#include "core/ops/embedding.h"

#include "core/dispatch.h"
#include "core/ops/check.h"
#include "core/ops/elementwise.h"

namespace mmfree {

void embedding(const Tensor& table, const Tensor& ids, Tensor& y) {
  check_float("embedding", "table", table, 2);
  check_tensor("embedding", "ids", ids, {ids.size()}, DType::i32);
  check_tensor("embedding", "y", y, {ids.size(), table.dim(1)}, table.dtype());
  check_device("embedding", table.device(), {&ids, &y});
  const EmbeddingArgs args{table.raw(),  ids.data<int32_t>(), y.raw_mut(), ids.size(),
                           table.dim(0), table.dim(1),        0,           table.dtype()};
  MMFREE_DISPATCH(table.device(), embedding, args);
}

const char* name_of(TableStore store) {
  switch (store) {
    case TableStore::f32:
      return "f32";
    case TableStore::bf16:
      return "bf16";
    case TableStore::int8:
      return "int8";
    case TableStore::int4:
      return "int4";
  }
  return "?";
}

QuantTensor store_table(const Tensor& table, TableStore store) {
  constexpr const char* op = "store_table";
  check_tensor(op, "table", table, {table.rows(), table.cols()}, DType::f32);
  MMFREE_CHECK(DeviceError, table.device() == Device::cpu, op, ": the table must be on the CPU");
  const int64_t v = table.dim(0), d = table.dim(1);
  QuantTensor out(table);
  if (store == TableStore::f32) return out;
  if (store == TableStore::bf16) {
    out.values = Tensor({v, d}, DType::bf16);
    cast(table, out.values);
    return out;
  }
  if (store == TableStore::int8) {
    out = QuantTensor(Tensor({v, d}, DType::i8), Tensor({v}, DType::f32), DType::f32);
  } else {
    MMFREE_CHECK(ShapeError, d % 2 == 0, op, ": two codes share a byte, so four bits need an even width, got ", d);
    out.values = Tensor({v, d / 2}, DType::u8);
    out.scale = Tensor({v, (d + kTableGroup - 1) / kTableGroup}, DType::bf16);
    out.axis = ScaleAxis::group;
  }
  cpu::store_table(table.data<float>(), {out.values.raw_mut(), out.scale.raw_mut(), nullptr, nullptr, 0, v, d, store});
  return out;
}

int64_t table_width(const QuantTensor& table) { return table.values.dim(1) * (table.axis == ScaleAxis::group ? 2 : 1); }

bool is_packed(const QuantTensor& table) {
  return table.quantised() || (table.values.dtype() == DType::bf16 && table.values.device() == Device::cpu);
}

StoredTableArgs stored_table(const QuantTensor& table) {
  constexpr const char* op = "stored_table";
  const Tensor& codes = table.values;
  const int64_t v = codes.dim(0), d = table_width(table);
  StoredTableArgs args{codes.raw(), table.scale.raw(), nullptr, nullptr, 0, v, d, TableStore::f32};
  DType dtype = DType::f32;
  if (table.axis == ScaleAxis::group) {
    args.store = TableStore::int4, dtype = DType::u8;
    check_tensor(op, "scale", table.scale, {v, (d + kTableGroup - 1) / kTableGroup}, DType::bf16);
  } else if (table.quantised()) {
    args.store = TableStore::int8, dtype = DType::i8;
    check_tensor(op, "scale", table.scale, {v}, DType::f32);
  } else if (codes.dtype() == DType::bf16) {
    args.store = TableStore::bf16, dtype = DType::bf16;
  }
  check_tensor(op, "table", codes, {v, codes.dim(1)}, dtype);
  check_device(op, codes.device(), {&table.scale});
  return args;
}

void stored_embedding(const QuantTensor& table, const Tensor& ids, Tensor& y) {
  constexpr const char* op = "stored_embedding";
  StoredTableArgs args = stored_table(table);
  check_tensor(op, "ids", ids, {ids.size()}, DType::i32);
  check_tensor(op, "y", y, {ids.size(), args.d}, DType::f32);
  check_device(op, Device::cpu, {&table.values, &ids, &y});
  args.ids = ids.data<int32_t>(), args.y = y.mut<float>(), args.n = ids.size();
  cpu::stored_embedding(args);
}

void embedding_backward(const Tensor& ids, const Tensor& dy, Tensor& dtable, double beta) {
  check_float("embedding_backward", "dtable", dtable, 2);
  check_tensor("embedding_backward", "ids", ids, {ids.size()}, DType::i32);
  check_tensor("embedding_backward", "dy", dy, {ids.size(), dtable.dim(1)}, dy.dtype());
  check_float("embedding_backward", "dy", dy, 2);
  MMFREE_CHECK(DTypeError, dtable.dtype() == param_dtype(dy.dtype()), "embedding_backward: dtable must be ",
               name_of(param_dtype(dy.dtype())), ", got ", dtable.describe());
  check_device("embedding_backward", dy.device(), {&ids, &dtable});
  const EmbeddingArgs args{dy.raw(), ids.data<int32_t>(), dtable.raw_mut(), ids.size(), dtable.dim(0), dtable.dim(1),
                           beta,     dy.dtype()};
  MMFREE_DISPATCH(dy.device(), embedding_backward, args);
}

}  // namespace mmfree
