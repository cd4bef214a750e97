#include "core/ranks/agreement.h"

#include <memory>
#include <string>

namespace mmfree {

Group& lone_group() {
  static const std::unique_ptr<Group> group = Group::alone();
  return *group;
}

std::vector<int64_t> agree(Group& group, const std::function<int64_t()>& body) {
  if (group.size() == 1) return {body()};
  struct Said {
    int64_t number = 0, status = 0;
  } mine;
  std::string message;
  try {
    mine.number = body();
  } catch (const LostRank&) {
    throw;
  } catch (const Error& e) {
    mine.status = int64_t(e.status());
    message = e.what();
  }
  std::vector<Said> said(size_t(group.size()));
  group.all_gather(&mine, sizeof mine, said.data());
  std::vector<int64_t> numbers;
  for (const Said& s : said) {
    if (s.status != 0) {
      const std::string text = group.gather_texts(message)[numbers.size()];
      throw Error(numbers.empty() ? text : concat("rank ", numbers.size(), ": ", text), Exit(s.status));
    }
    numbers.push_back(s.number);
  }
  return numbers;
}

bool decide(Group& group, const std::function<bool()>& body) {
  uint8_t answer = group.rank() == 0 && body();
  group.broadcast(&answer, sizeof answer, 0);
  return answer != 0;
}

}  // namespace mmfree
