package dkim

import (
	"bufio"
	"crypto"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode/utf8"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/policy"
)

// Bounds of opendkim's tables.
const (
	maxTable      = 16 << 20 // bytes of a file
	maxTableLine  = 16 << 10
	maxSignatures = 10 // of a message, by multiple entries
)

// row is a line of a table: what stands first on it, and the rest.
type row struct {
	file        string
	line        int
	key, value  string
	keyColumn   int // from 1, in bytes
	valueColumn int
}

// tableSource parts "refile:/path" and the like. opendkim knows more kinds
// (opendkim(8)), which are not read here.
func tableSource(s string) (path string, refile bool, err error) {
	kind, rest, ok := strings.Cut(s, ":")
	switch {
	case strings.HasPrefix(s, "/") || strings.HasPrefix(s, "./") || strings.HasPrefix(s, "../"):
		return s, false, nil
	case !ok || rest == "":
		return "", false, fmt.Errorf("%q is no table: a path, file:PATH or refile:PATH", s)
	case kind == "file":
		return rest, false, nil
	case kind == "refile":
		return rest, true, nil
	}
	return "", false, fmt.Errorf("tables of kind %q are not read: file:PATH or refile:PATH", kind)
}

// readTable reads the lines of a table: a key, white space, a value; from # on
// there is a comment.
func readTable(path string, fs *conf.Faults) []row {
	f, err := os.Open(path)
	if err != nil {
		fs.Filef(path, 0, 0, "%v", cause(err))
		return nil
	}
	defer f.Close() //nolint:errcheck // only read
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() || st.Size() > maxTable {
		fs.Filef(path, 0, 0, "it is not a regular file of at most %d bytes", maxTable)
		return nil
	}
	return parseTable(path, io.LimitReader(f, maxTable), fs)
}

func cause(err error) error {
	if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
		return pe.Err
	}
	return err
}

func parseTable(file string, in io.Reader, fs *conf.Faults) (rows []row) {
	s := bufio.NewScanner(in)
	s.Buffer(make([]byte, 0, 4096), maxTableLine)
	n := 0
	for s.Scan() {
		n++
		text := s.Text()
		if i := strings.IndexByte(text, '#'); i >= 0 {
			text = text[:i]
		}
		text = strings.TrimRight(text, " \t\r\v\f")
		start := len(text) - len(strings.TrimLeft(text, " \t\v\f"))
		if start == len(text) {
			continue
		}
		if i := strings.IndexFunc(text, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f || r == utf8.RuneError }); i >= 0 {
			fs.Filef(file, n, i+1, "it is not text")
			continue
		}
		end := strings.IndexAny(text[start:], " \t")
		if end < 0 {
			fs.Filef(file, n, len(text)+1, "%q has no value behind it", text[start:])
			continue
		}
		key := text[start : start+end]
		rest := text[start+end:]
		value := strings.TrimLeft(rest, " \t")
		rows = append(rows, row{file: file, line: n, key: key, value: value, keyColumn: start + 1, valueColumn: len(text) - len(value) + 1})
	}
	if err := s.Err(); err != nil {
		if errors.Is(err, bufio.ErrTooLong) {
			err = fmt.Errorf("a line has more than %d bytes", maxTableLine)
		}
		fs.Filef(file, n+1, 0, "%v", err)
	}
	return rows
}

// fault reports what is wrong with the value of a row, at an offset in it.
func (r *row) fault(fs *conf.Faults, offset int, format string, args ...any) {
	fs.Filef(r.file, r.line, r.valueColumn+offset, format, args...)
}

// keyEntry is a line of a key table.
type keyEntry struct {
	key *key
	// each are the keys of the domains that a "%" in the path stands for; key is
	// nil then.
	each map[string]*key
}

// signingTable is opendkim's SigningTable with its KeyTable.
type signingTable struct {
	refile  bool
	entries []signingEntry
	// exact are the entries without wildcard, and of a refile those of the form
	// *@domain, by their pattern.
	exact map[string][]int
	wild  []int // entries of a refile with other wildcards
	keys  map[string]*keyEntry
}

// signingEntry is a line of a signing table.
type signingEntry struct {
	pattern  string   // in lower case
	parts    []string // of a wildcard pattern, between the asterisks
	name     string   // of the key, "%" for the author's domain
	identity string
}

// readTables reads both tables.
func (r *keyring) readTables(c *Config, prefix string, fs *conf.Faults) {
	keyPath, _, err := tableSource(c.KeyTable)
	if err != nil {
		fs.Keyf(prefix+".keytable", "%v", err)
	}
	signPath, refile, err2 := tableSource(c.SigningTable)
	if err2 != nil {
		fs.Keyf(prefix+".signingtable", "%v", err2)
	}
	if err != nil || err2 != nil {
		return
	}
	t := &signingTable{refile: refile, exact: map[string][]int{}, keys: map[string]*keyEntry{}}
	before := len(*fs)
	for _, row := range readTable(keyPath, fs) {
		r.addKey(t, &row, fs)
	}
	t.read(readTable(signPath, fs), len(*fs) == before, &r.warnings, fs)
	r.signing = t
}

// addKey takes a line of the key table: NAME domain:selector:path.
func (r *keyring) addKey(t *signingTable, row *row, fs *conf.Faults) {
	if t.keys[row.key] != nil {
		fs.Filef(row.file, row.line, row.keyColumn, "%q stands there twice", row.key)
		return
	}
	parts := strings.SplitN(row.value, ":", 3)
	if len(parts) != 3 || parts[2] == "" {
		row.fault(fs, 0, "%q is not domain:selector:path", row.value)
		return
	}
	name, selector, where := parts[0], strings.ToLower(parts[1]), strings.TrimSpace(parts[2])
	at := len(parts[0]) + 1
	if name != "%" {
		if name = mailaddr.Domain(name); !mailaddr.IsDomain(name) {
			row.fault(fs, 0, "%q is no domain", parts[0])
			return
		}
	}
	if !properSelector(selector) {
		row.fault(fs, at, "%q is no selector", parts[1])
		return
	}
	at += len(parts[1]) + 1
	if name == "%" {
		name = ""
	}
	add := func(domain, file string, signer crypto.Signer) *key {
		k := &key{domain: domain, selector: selector, key: fmt.Sprintf("%s:%d", row.file, row.line), file: file, signer: signer}
		if err := k.describe(); err != nil {
			row.fault(fs, at, "%v", err)
			return nil
		}
		r.keys = append(r.keys, k)
		return k
	}
	e := &keyEntry{}
	t.keys[row.key] = e
	switch {
	case !strings.HasPrefix(where, "/") && !strings.HasPrefix(where, "./") && !strings.HasPrefix(where, "../"):
		signer, err := inlineKey(where)
		if err != nil {
			row.fault(fs, at, "%v", err)
			return
		}
		if st, err := os.Stat(row.file); err == nil {
			if err := safe(st, groups()); err != nil {
				row.fault(fs, at, "the key stands in this file, and that %v", err)
				return
			}
		}
		e.key = add(name, row.file, signer)
	case strings.Contains(where, "%"):
		e.each = map[string]*key{}
		files, err := domainFiles(where)
		if err != nil {
			row.fault(fs, at, "%v", err)
			return
		}
		for _, of := range files {
			signer, err := readKey(of.file)
			if err != nil {
				row.fault(fs, at, "%v", err)
				continue
			}
			domain := name
			if domain == "" {
				domain = of.domain
			}
			if k := add(domain, of.file, signer); k != nil {
				e.each[of.domain] = k
			}
		}
		if len(files) == 0 {
			row.fault(fs, at, "there is no file of this form: %s", where)
		}
	default:
		signer, err := readKey(where)
		if err != nil {
			row.fault(fs, at, "%v", err)
			return
		}
		e.key = add(name, where, signer)
	}
}

// domainFile is a key file of a domain.
type domainFile struct{ domain, file string }

// domainFiles returns the files that a path with "%" for a domain stands for.
func domainFiles(pattern string) (out []domainFile, err error) {
	escaped := strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(pattern)
	files, err := filepath.Glob(strings.ReplaceAll(escaped, "%", "*"))
	if err != nil {
		return nil, fmt.Errorf("%q is no path: %w", pattern, err)
	}
	before, after, _ := strings.Cut(pattern, "%")
	for _, file := range files {
		rest := strings.TrimPrefix(file, before)
		end := strings.IndexByte(rest, '/')
		if end < 0 {
			end = len(rest)
		}
		segment, _, _ := strings.Cut(after, "/")
		segment, _, _ = strings.Cut(segment, "%")
		for i := 1; i <= end; i++ {
			name := rest[:i]
			if segment != "" && !strings.HasPrefix(rest[i:], segment) {
				continue
			}
			domain := mailaddr.Domain(name)
			if mailaddr.IsDomain(domain) && strings.ReplaceAll(pattern, "%", name) == file {
				out = append(out, domainFile{domain, file})
				break
			}
		}
	}
	return out, nil
}

// inlineKey reads a key that stands in a table: the DER of PKCS#1 or PKCS#8 in
// base64.
func inlineKey(text string) (crypto.Signer, error) {
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		return nil, errors.New("it is neither a path (beginning with / or ./) nor a key in base64")
	}
	return parseDER(der)
}

// read takes the lines of the signing table. Keys are looked for where the key
// table had no fault.
func (t *signingTable) read(rows []row, keysRead bool, warnings, fs *conf.Faults) {
	for i := range rows {
		row := &rows[i]
		e := signingEntry{pattern: strings.ToLower(row.key)}
		if local, domain, ok := strings.Cut(e.pattern, "@"); ok && !strings.ContainsAny(domain, "*%") {
			if dotted, ok := strings.CutPrefix(domain, "."); ok {
				e.pattern = local + "@." + mailaddr.Domain(dotted)
			} else {
				e.pattern = local + "@" + mailaddr.Domain(domain)
			}
		}
		var more bool
		e.name, e.identity, more = strings.Cut(row.value, ":")
		e.name = strings.TrimSpace(e.name)
		e.identity = strings.TrimSpace(e.identity)
		if more && (e.identity == "" || !strings.Contains(e.identity, "@") || strings.ContainsFunc(e.identity, func(r rune) bool { return r <= ' ' || r >= 0x7f || r == ';' || r == '=' })) {
			row.fault(fs, strings.IndexByte(row.value, ':')+1, "%q is no identity (i=), such as @example.org", e.identity)
			continue
		}
		if t.keys[e.name] == nil && e.name != "%" && keysRead {
			row.fault(fs, 0, "the key table has no key %q", e.name)
			continue
		}
		if t.refile && strings.Contains(e.pattern, "*") {
			e.parts = strings.Split(e.pattern, "*")
		}
		switch {
		case t.refile && !strings.ContainsAny(e.pattern, "*@"):
			*warnings = append(*warnings, &conf.Fault{
				File: row.file, Line: row.line, Column: row.keyColumn,
				Text: fmt.Sprintf("%q matches nothing: in a refile it is compared with the whole address, as *@%s", row.key, row.key),
			})
		case !t.refile && strings.Contains(e.pattern, "*") && e.pattern != "*" && !strings.HasSuffix(e.pattern, "@*"):
			*warnings = append(*warnings, &conf.Fault{
				File: row.file, Line: row.line, Column: row.keyColumn,
				Text: fmt.Sprintf("%q matches nothing: only a refile has wildcards, the domain is written as %s", row.key, strings.TrimPrefix(strings.TrimPrefix(row.key, "*@"), "*")),
			})
		}
		n := len(t.entries)
		t.entries = append(t.entries, e)
		switch {
		case e.parts == nil || len(e.parts) == 2 && strings.HasPrefix(e.pattern, "*@"):
			t.exact[e.pattern] = append(t.exact[e.pattern], n)
		default:
			t.wild = append(t.wild, n)
		}
	}
}

// match returns the entries for an author: the first, or all up to ten.
func (t *signingTable) match(author policy.Address, all bool) (out []signingEntry) {
	local := strings.ToLower(author.Local)
	address := local + "@" + author.Domain
	var found []int
	if t.refile {
		found = slices.Concat(t.exact[address], t.exact["*@"+author.Domain])
		for _, n := range t.wild {
			if matchParts(t.entries[n].parts, address) {
				found = append(found, n)
			}
		}
		slices.Sort(found)
	} else {
		for _, key := range lookups(local, author.Domain) {
			found = append(found, t.exact[key]...)
			if len(found) > 0 && !all {
				break
			}
		}
	}
	for _, n := range found {
		if len(out) == maxSignatures || len(out) == 1 && !all {
			break
		}
		out = append(out, t.entries[n])
	}
	return out
}

// lookups returns what a table that is no refile is asked for, in order.
func lookups(local, domain string) []string {
	out := []string{local + "@" + domain, domain}
	var parents []string
	for _, parent, ok := strings.Cut(domain, "."); ok; _, parent, ok = strings.Cut(parent, ".") {
		parents = append(parents, "."+parent)
	}
	for _, p := range parents {
		out = append(out, local+"@"+p)
	}
	out = append(out, parents...)
	return append(out, local+"@*", "*")
}

// matchParts reports whether s is parts with anything between them.
func matchParts(parts []string, s string) bool {
	first, last := parts[0], parts[len(parts)-1]
	if len(s) < len(first)+len(last) || !strings.HasPrefix(s, first) || !strings.HasSuffix(s, last) {
		return false
	}
	s = s[len(first) : len(s)-len(last)]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(s, p)
		if i < 0 {
			return false
		}
		s = s[i+len(p):]
	}
	return true
}

// use returns the key that an entry names for an author.
func (t *signingTable) use(e signingEntry, author policy.Address) (u use, ok bool) {
	name := e.name
	if name == "%" {
		name = author.Domain
	}
	entry := t.keys[name]
	if entry == nil {
		return use{}, false
	}
	u.key = entry.key
	if entry.each != nil {
		u.key = entry.each[author.Domain]
	}
	if u.key == nil {
		return use{}, false
	}
	if u.domain = u.key.domain; u.domain == "" {
		u.domain = author.Domain
	}
	// An identity of another domain is left out, as opendkim does.
	identity := strings.ReplaceAll(e.identity, "%", author.Domain)
	if at := strings.LastIndexByte(identity, '@'); at >= 0 {
		of := mailaddr.Domain(identity[at+1:])
		if of == u.domain || strings.HasSuffix(of, "."+u.domain) {
			u.identity = identity[:at+1] + of
		}
	}
	return u, true
}
