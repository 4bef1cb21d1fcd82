// The merges of a tokenizer.json: most of a large file, and of the time to load it.
#pragma once

#include <string>

#include "data/text/json_scanner.h"
#include "data/text/tokenizer/merge_table.h"
#include "data/text/tokenizer/vocabulary.h"

namespace graft::data {

// Reads ["a b", …] or [["a", "b"], …], the lowest rank first. A long list is read in two halves at
// once, on a thread each. Errors: kData (tokens that the vocabulary does not have, too many).
MergeTable read_json_merges(JsonScanner& scanner,
                            const Vocabulary& vocabulary,
                            const std::string& name);

}  // namespace graft::data
