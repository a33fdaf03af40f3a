// Package headercheck runs header_checks(5) tables over messages: the tables
// for primary headers, MIME headers, headers of attached messages and body
// lines that Postfix's cleanup(8) knows, with the same patterns, the same text
// given to them and the same actions. docs/checks/headers.md is its manual.
//
// A [Check] implements [policy.Inspector]. Nothing here does I/O while a
// message is looked at; tables are read again in the background when their
// files change.
package headercheck
