// Package archtest holds a table of what each package of this module may
// import, and a test that fails on anything else: imports point down, never
// sideways between checks, and each outside library has one home.
//
// A new package is added to the table with what it needs, and no more.
package archtest
