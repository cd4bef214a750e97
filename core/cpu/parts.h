#pragma once
#include "core/ops/attention.h"
#include "core/ops/mlgru_scan.h"
#include "core/ops/norm_quant.h"

/// Parts of the f32 kernels that a decode program divides among its own threads: with the bits of the whole kernels,
/// and without allocations.
namespace mmfree::cpu {

/// norm_quant of one row: args.n is 1. `scratch`: 3 rows of d elements.
void norm_quant_row(const NormQuantArgs& args, float* scratch);

/// mlgru_scan of the stripes [begin, end) of its B · D channels, 64 channels to a stripe.
int64_t mlgru_scan_stripes(const MlgruScanArgs& args);
void mlgru_scan_part(const MlgruScanArgs& args, int64_t begin, int64_t end);

/// rope of the tokens [begin, end) of its B · T.
void rope_part(const RopeArgs& args, const double* turns, int64_t begin, int64_t end);

/// Attention of the tasks [begin, end): a task is a head and up to 32 queries of a sequence.
int64_t attention_tasks(const AttentionArgs& args);
void attention_part(const AttentionArgs& args, int64_t begin, int64_t end);

}  // namespace mmfree::cpu
