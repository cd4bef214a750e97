#pragma once
#include <string_view>

/// The parts of a report's page, which the build makes of the files in train/watch/page.
namespace mmfree::page {

extern const std::string_view html;    ///< with {{style}}, {{script}}, {{title}} and {{data}} in it
extern const std::string_view style;   ///< report.css
extern const std::string_view script;  ///< the .js files

}  // namespace mmfree::page
