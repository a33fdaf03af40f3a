// Package list is the engine of entry lists: what the access lists and the
// exceptions of greylisting are written in.
//
// A list is a text file with one entry a line, `PATTERN [ACTION] [key=value
// ...] [text]`; Postfix tables (access(5), cidr_table(5), pcre_table(5),
// regexp_table(5)) and postgrey's whitelist files are read as they are. The
// syntax and the order of matching are described in docs/checks/access.md.
package list

import (
	"strings"
	"sync/atomic"
	"time"

	"postern/policy"
)

// Field is the part of a request that a pattern looks at.
type Field uint8

// The fields.
const (
	Client    Field = iota // address and verified name of the client
	Helo                   // the HELO name
	Sender                 // the envelope sender
	Recipient              // the envelope recipient
	fieldCount
)

var fieldNames = [fieldCount]string{"client", "helo", "sender", "recipient"}

// String returns the name used in configuration.
func (f Field) String() string {
	if f < fieldCount {
		return fieldNames[f]
	}
	return "unknown"
}

// Options says how the sources of a Set are read. The zero value takes entries
// whose action is "allow" when they name none.
type Options struct {
	// Key is the configuration key of the sources, "access.deny": faults in
	// the list of sources itself carry it.
	Key string
	// KeyAt returns the configuration key of a source by its index; nil: Key
	// and the index.
	KeyAt func(i int) string
	// Field is what patterns without a prefix and the keys of Postfix tables
	// are looked up by. A source may set its own: "sender=texthash:PATH".
	Field Field
	// Default is the action of entries that name none. The zero value
	// (Continue) stands for Allow unless NeedAction is set.
	Default policy.Action
	// NeedAction makes an entry without an action a fault.
	NeedAction bool
	// Actions are those that an entry may have; nil: only Default and
	// Continue ("dunno", which ends the search and decides nothing).
	Actions []policy.Action
	// Params are the keys that entries may carry beside until and owner, with
	// a function each that says what is wrong with a value.
	Params map[string]func(value string) error
	// Vars are the placeholders of reply texts.
	Vars []string
	// Replies are the codes used where the text of an entry names none, for
	// Reject and for Defer. Zero: 554 5.7.1 and 450 4.7.1.
	Reject, Defer policy.Reply
	// Delimiters are the characters that part an address extension from the
	// user ("+"); empty: addresses have none.
	Delimiters string
	// Lenient reads regexp and pcre tables as Postfix does, see [table.Read].
	Lenient bool
	// Now is when the list is read; zero: time.Now(). Only the number of
	// expired entries in a report depends on it.
	Now time.Time
}

// Entry is one line of a list, or one rule of a Postfix table. It is not to
// be changed; all methods are safe for concurrent use.
type Entry struct {
	File    string // as the source names it; the configuration key for inline entries
	Line    int    // counts from 1; for inline entries the place in the list of sources
	Pattern string // as written
	Field   Field
	Action  policy.Action
	// Reply is what a refused client reads; nil: the entry has no text of its own.
	Reply *policy.Template
	// Text is the rest of the line as written.
	Text string
	// Arg is the address of a redirect, and Header what a "prepend" adds.
	Arg    string
	Header policy.Header
	// Until is when the entry ends; zero: never.
	Until  time.Time
	Owner  string
	Params map[string]string // nil when there are none

	rank     rank
	order    int    // place among all entries of the set: the first wins a tie
	next     *Entry // with the same key
	extended bool   // matches extensions whatever Options.Delimiters says
	hits     *counter
}

// counter survives the entry when the list is read again.
type counter struct {
	hits atomic.Uint64
	last atomic.Int64 // Unix seconds
}

// Expired reports whether the entry has ended at time now.
func (e *Entry) Expired(now time.Time) bool {
	return !e.Until.IsZero() && !now.Before(e.Until)
}

// Hits returns how often the entry has decided, and when it last did (zero: never).
func (e *Entry) Hits() (n uint64, last time.Time) {
	n = e.hits.hits.Load()
	if s := e.hits.last.Load(); s != 0 {
		last = time.Unix(s, 0)
	}
	return n, last
}

// Hit counts a decision of the entry.
func (e *Entry) Hit(now time.Time) {
	e.hits.hits.Add(1)
	e.hits.last.Store(now.Unix())
}

// Compare orders entries of any sets by how specific they are: negative when
// e goes before f, 0 when they are equally specific.
func (e *Entry) Compare(f *Entry) int { return e.rank.compare(f.rank) }

// Place returns "file:line".
func (e *Entry) Place() string {
	var b strings.Builder
	b.WriteString(e.File)
	b.WriteByte(':')
	writeInt(&b, e.Line)
	return b.String()
}
