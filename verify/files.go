package verify

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/filestamp"
	"postern/internal/mailaddr"
	"postern/policy"
	"postern/table"
)

// file is a table or list that is kept up to date with its file. The present
// content is immutable.
type file struct {
	text    string // as configured
	kind    string // "list" or a Postfix table's
	path    string
	content atomic.Pointer[content]
	track   filestamp.Tracker // used by one goroutine
	fault   atomic.Pointer[string]
}

// content is a file in memory.
type content struct {
	table *table.Table
	lines map[string]int // of a list: the entry, folded, and its line
	size  int
}

// listKind is the kind of a file with one address or domain a line.
const listKind = "list"

// maxListFile is the most bytes of a list.
const maxListFile = 256 << 20

// parseFile reads "kind:/path".
func parseFile(text string) (*file, error) {
	kind, path, ok := strings.Cut(text, ":")
	if !ok || path == "" {
		return nil, fmt.Errorf("%q: want kind:/path with one of list, texthash, regexp, pcre", text)
	}
	if k, known := table.KindByName(kind); kind != listKind && (!known || k == table.CIDR) {
		return nil, fmt.Errorf("%q: unknown kind %q (one of list, texthash, regexp, pcre); build hash, btree and lmdb tables are read from their source, with texthash", text, kind)
	}
	return &file{text: text, kind: kind, path: path}, nil
}

// load reads the file; on faults the last good content stays.
func (f *file) load() conf.Faults {
	f.track.Begin(f.path)
	var fs conf.Faults
	c := &content{}
	if f.kind == listKind {
		c.lines, fs = readList(f.path)
		c.size = len(c.lines)
	} else {
		kind, _ := table.KindByName(f.kind)
		if c.table, fs = table.Load(kind, f.path); c.table != nil {
			c.size = len(c.table.Rules())
		}
	}
	// What fills the file has failed, more likely than that everybody has left.
	if old := f.content.Load(); len(fs) == 0 && c.size == 0 && old != nil && old.size > 0 {
		fs.Filef(f.path, 0, 0, "the file has become empty (`postern reload` takes it as it is)")
	}
	if len(fs) > 0 {
		text := fs.Error()
		f.fault.Store(&text)
		return fs
	}
	f.track.Good()
	f.fault.Store(nil)
	f.content.Store(c)
	return nil
}

// poll reads the file again if it has changed.
func (f *file) poll(now time.Time, log *zap.Logger) {
	if !f.track.Due(f.path, now) {
		return
	}
	before := f.fault.Load()
	if fs := f.load(); fs != nil {
		if !f.track.Bad() {
			f.fault.Store(before) // it may be half written
			return
		}
		log.Error("a file was not taken, its last good content stays in force", zap.String("file", f.text), zap.Error(fs))
		return
	}
	log.Info("file reloaded", zap.String("file", f.text), zap.Int("entries", f.content.Load().size))
}

// readList reads one address or domain a line; "#" begins a comment.
func readList(path string) (map[string]int, conf.Faults) {
	var fs conf.Faults
	h, err := os.Open(path)
	if err != nil {
		fs.Filef(path, 0, 0, "%v", reason(err))
		return nil, fs
	}
	defer h.Close() //nolint:errcheck // only read
	data, err := io.ReadAll(io.LimitReader(h, maxListFile+1))
	switch {
	case err != nil:
		fs.Filef(path, 0, 0, "%v", reason(err))
		return nil, fs
	case len(data) > maxListFile:
		fs.Filef(path, 0, 0, "the file has more than %d bytes", maxListFile)
		return nil, fs
	}
	lines := make(map[string]int, bytes.Count(data, []byte("\n")))
	n := 0
	for line := range strings.Lines(string(data)) {
		n++
		if !utf8.ValidString(line) {
			fs.Filef(path, n, 1, "the line is not UTF-8")
			continue
		}
		word, rest, _ := strings.Cut(strings.TrimSpace(line), " ")
		word = strings.TrimSuffix(word, "\t")
		if word == "" || word[0] == '#' {
			continue
		}
		if rest = strings.TrimSpace(rest); rest != "" && rest[0] != '#' {
			fs.Filef(path, n, strings.Index(line, rest)+1, "text behind %q: one address or domain a line", clip(word))
			continue
		}
		lines[foldKey(word)] = n
	}
	if len(fs) > 0 {
		return nil, fs
	}
	return lines, nil
}

func reason(err error) error {
	if pe, ok := err.(*os.PathError); ok { //nolint:errorlint // as os returns it
		return pe.Err
	}
	return err
}

// foldKey brings an address or a domain into the form that lists compare.
func foldKey(s string) string {
	if at := strings.LastIndexByte(s, '@'); at >= 0 {
		return foldLocal(s[:at]) + "@" + mailaddr.Domain(s[at+1:])
	}
	if dot, ok := strings.CutPrefix(s, "."); ok {
		return "." + mailaddr.Domain(dot)
	}
	return mailaddr.Domain(s)
}

// foldLocal makes a local part small as far as it stays another spelling of
// the same: no letter becomes an ASCII one.
func foldLocal(s string) string {
	return strings.Map(func(r rune) rune {
		if l := unicode.ToLower(r); r < utf8.RuneSelf || l >= utf8.RuneSelf {
			return l
		}
		return r
	}, s)
}

// lookup returns what the file says about one key, and where.
func (f *file) lookup(key string) (result, place string, found bool) {
	c := f.content.Load()
	if c == nil {
		return "", "", false
	}
	if c.table == nil {
		n, ok := c.lines[key]
		return "", fmt.Sprintf("%s:%d", f.path, n), ok
	}
	r, rule := c.table.Lookup(key)
	if rule == nil {
		return "", "", false
	}
	return r, fmt.Sprintf("%s:%d", f.path, rule.Line), true
}

// pattern reports whether the file matches patterns: partial keys are not
// looked up in one.
func (f *file) pattern() bool { return f.kind == "regexp" || f.kind == "pcre" }

// address looks an address up as Postfix does in relay_recipient_maps: whole,
// without its extension, then "@domain".
func (f *file) address(a policy.Address, delimiters string) (result, place string, found bool) {
	local := foldLocal(a.Local)
	whole := local + "@" + a.Domain
	if f.pattern() {
		return f.lookup(whole)
	}
	if result, place, found = f.lookup(whole); found {
		return result, place, true
	}
	if user, _, ok := mailaddr.SplitExtension(local, delimiters); ok {
		if result, place, found = f.lookup(user + "@" + a.Domain); found {
			return result, place, true
		}
	}
	return f.lookup("@" + a.Domain)
}

// domain looks a domain up as Postfix does in relay_domains: itself, then
// ".parent" entries.
func (f *file) domain(d string) (result string, found bool) {
	if r, _, ok := f.lookup(d); ok || f.pattern() {
		return r, ok
	}
	for {
		dot := strings.IndexByte(d, '.')
		if dot < 0 {
			return "", false
		}
		if r, _, ok := f.lookup(d[dot:]); ok {
			return r, true
		}
		d = d[dot+1:]
	}
}

// transport looks an address up as Postfix does in transport_maps.
func (f *file) transport(a policy.Address, delimiters string) (result, place string, found bool) {
	local := foldLocal(a.Local)
	if f.pattern() {
		return f.lookup(local + "@" + a.Domain)
	}
	if r, p, ok := f.lookup(local + "@" + a.Domain); ok {
		return r, p, true
	}
	if user, _, ok := mailaddr.SplitExtension(local, delimiters); ok {
		if r, p, ok := f.lookup(user + "@" + a.Domain); ok {
			return r, p, true
		}
	}
	if r, p, ok := f.lookup(a.Domain); ok {
		return r, p, true
	}
	for d := a.Domain; ; {
		dot := strings.IndexByte(d, '.')
		if dot < 0 {
			return f.lookup("*")
		}
		if r, p, ok := f.lookup(d[dot:]); ok {
			return r, p, true
		}
		d = d[dot+1:]
	}
}
