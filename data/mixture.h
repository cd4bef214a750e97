#pragma once
#include <cstddef>
#include <cstdint>
#include <vector>

namespace mmfree {

/// Which source each sample comes from, when several are mixed by weight. The sources take turns in a fixed pattern of
/// kPattern samples, spread as evenly as whole samples allow; so each stretch of samples holds the sources close to
/// their weights. Everything is a function of the sample's number, computed in constant time.
class Mixture {
 public:
  /// Weights are rounded to multiples of 1 / kPattern; one above 0 counts at least as 1 / kPattern.
  static constexpr int64_t kPattern = 1 << 14;
  /// From sample `begin` on, the sources have these weights, one or more of them above 0.
  struct Stage {
    int64_t begin = 0;
    std::vector<double> weights;
  };
  /// A source, and the number of its samples before this one.
  struct Place {
    size_t source = 0;
    int64_t index = 0;
  };

  /// `stages`: at least one, with ascending begins; the first begins at 0. All have one weight per source.
  explicit Mixture(const std::vector<Stage>& stages);
  Place place(int64_t sample) const;
  /// The number of samples of each source before `sample`.
  std::vector<int64_t> taken(int64_t sample) const;

 private:
  struct Pattern {
    int64_t begin = 0;
    std::vector<int64_t> before;    ///< samples of each source before the stage
    std::vector<int64_t> per_turn;  ///< samples of each source in one pattern
    std::vector<uint16_t> source;   ///< [kPattern]
    std::vector<uint16_t> rank;     ///< [kPattern]: how many samples of the same source come before in the pattern
  };
  static Pattern pattern_of(const std::vector<double>& weights);
  const Pattern& stage_of(int64_t sample) const;
  static std::vector<int64_t> taken(const Pattern& stage, int64_t sample);
  std::vector<Pattern> stages_;
};

}  // namespace mmfree
