#pragma once
#include <string>
#include <vector>

#include "data/text/document.h"

namespace mmfree {

/// A document, or a part of one, on its way into a split.
struct SplitDocument {
  Document document;
  bool valid = false;
};

/// Divides documents between training and validation.
struct Splitting {
  double valid_fraction = 0;
  bool tails = false;  ///< the end of each text is held out, instead of whole documents

  /// Appends the parts of a document. @throws std::bad_alloc
  void divide(Document document, std::vector<SplitDocument>* parts) const;
};

/// A document's content as bytes; equal for equal documents.
std::string content_key(const Document& document);

}  // namespace mmfree
