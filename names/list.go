package names

import (
	"bufio"
	"fmt"
	"os"
	"strings"
	"time"

	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/filestamp"
	"postern/internal/mailaddr"
)

// rule is one line of a list.
type rule struct {
	pattern string   // "*.example.org", lower case
	labels  []string // from the right: "org", "example", "*"
	except  bool
	file    string
	line    int
	rank    int // of its file: an earlier one goes first
}

func (r *rule) place() string { return fmt.Sprintf("%s:%d %s", r.file, r.line, r.pattern) }

// list is all rules, by their last two labels. It does not change.
type list struct {
	by map[string][]*rule
}

// maxLine and maxRules bound a file.
const (
	maxLine  = 512
	maxRules = 1_000_000
)

// parse reads a list. file stands in faults and places.
func parse(file, text string) (rules []rule, faults conf.Faults) {
	sc := bufio.NewScanner(strings.NewReader(text))
	sc.Buffer(nil, 64*1024)
	n := 0
	for sc.Scan() {
		n++
		line, _, _ := strings.Cut(sc.Text(), "#")
		column := 1 + len(line) - len(strings.TrimLeft(line, " \t"))
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		r := rule{file: file, line: n}
		body, except := strings.CutPrefix(line, "!")
		r.except = except
		if except {
			column++
		}
		body = strings.TrimPrefix(body, ".")
		if i := strings.IndexAny(body, " \t"); i >= 0 {
			faults.Filef(file, n, column+i, "one name a line: %q stands behind it", strings.TrimSpace(body[i:]))
			continue
		}
		if why := r.read(body); why != "" {
			faults.Filef(file, n, column, "%s", why)
			continue
		}
		if rules = append(rules, r); len(rules) > maxRules {
			faults.Filef(file, n, 0, "more than %d patterns", maxRules)
			return nil, faults
		}
	}
	if err := sc.Err(); err != nil {
		faults.Filef(file, n+1, 0, "%v", err)
	}
	return rules, faults
}

// read takes a pattern apart. It says what is wrong with it, "" for nothing.
func (r *rule) read(s string) string {
	if len(s) > maxLine {
		return fmt.Sprintf("a pattern of %d bytes; names have at most 255", len(s))
	}
	r.pattern = mailaddr.Domain(s)
	labels := strings.Split(r.pattern, ".")
	for i, l := range labels {
		switch {
		case l == "":
			return fmt.Sprintf("%q has an empty label", s)
		case strings.Trim(l, "abcdefghijklmnopqrstuvwxyz0123456789-_*") != "":
			return fmt.Sprintf("%q is not a pattern of host names: %q has a character that no name has", s, l)
		case i >= len(labels)-1 && strings.Contains(l, "*"):
			return fmt.Sprintf("%q: the last label cannot hold *", s)
		case strings.Count(l, "*") > 4:
			return fmt.Sprintf("%q: more than four * in one label", s)
		}
	}
	if len(labels) < 2 && labels[0] != "openstacklocal" {
		return fmt.Sprintf("%q would make a whole top-level domain generic", s)
	}
	r.labels = make([]string, 0, len(labels))
	for i := len(labels) - 1; i >= 0; i-- {
		r.labels = append(r.labels, labels[i])
	}
	return ""
}

func newList(parts ...[]rule) *list {
	l := &list{by: make(map[string][]*rule)}
	for rank, rules := range parts {
		for i := range rules {
			r := &rules[i]
			r.rank = rank
			key := r.labels[0]
			if len(r.labels) > 1 && !strings.Contains(r.labels[1], "*") {
				key = r.labels[1] + "." + key
			}
			l.by[key] = append(l.by[key], r)
		}
	}
	return l
}

// find returns the rule that decides on a name in the compared form, nil for
// none.
func (l *list) find(name string) *rule {
	last := strings.LastIndexByte(name, '.')
	if last < 0 {
		return nil
	}
	second := strings.LastIndexByte(name[:last], '.') + 1
	var best *rule
	for _, rules := range [...][]*rule{l.by[name[second:]], l.by[name[last+1:]]} {
		for _, r := range rules {
			if r.matches(name) && (best == nil || r.before(best)) {
				best = r
			}
		}
	}
	return best
}

// before reports whether r decides where both match.
func (r *rule) before(o *rule) bool {
	if len(r.labels) != len(o.labels) {
		return len(r.labels) > len(o.labels)
	}
	if r.rank != o.rank {
		return r.rank < o.rank
	}
	return r.except && !o.except
}

func (r *rule) matches(name string) bool {
	rest := name
	for _, want := range r.labels {
		if rest == "" {
			return false
		}
		label := rest
		if dot := strings.LastIndexByte(rest, '.'); dot >= 0 {
			label, rest = rest[dot+1:], rest[:dot]
		} else {
			rest = ""
		}
		if !glob(want, label) {
			return false
		}
	}
	return true
}

// glob matches a label with a pattern in which * stands for any characters.
func glob(pattern, s string) bool {
	star := strings.IndexByte(pattern, '*')
	if star < 0 {
		return pattern == s
	}
	if !strings.HasPrefix(s, pattern[:star]) {
		return false
	}
	s, pattern = s[star:], pattern[star+1:]
	for {
		star = strings.IndexByte(pattern, '*')
		if star < 0 {
			return strings.HasSuffix(s, pattern)
		}
		i := strings.Index(s, pattern[:star])
		if i < 0 {
			return false
		}
		s, pattern = s[i+star:], pattern[star+1:]
	}
}

// file is a list of the operator's.
type file struct {
	path  string
	track filestamp.Tracker
	rules []rule
}

func readFile(path string) ([]rule, conf.Faults) {
	text, err := os.ReadFile(path)
	if err != nil {
		var fs conf.Faults
		fs.Filef(path, 0, 0, "%v", err)
		return nil, fs
	}
	return parse(path, string(text))
}

// poll reads the files that have changed and been left alone since. A file
// with faults keeps its last good rules.
func (j *Judge) poll(now time.Time) {
	changed := false
	for _, f := range j.files {
		if !f.track.Due(f.path, now) {
			continue
		}
		f.track.Begin(f.path)
		rules, faults := readFile(f.path)
		if err := faults.Err(); err != nil {
			if !f.track.Bad() {
				continue // it may be half written
			}
			j.log.Error("a list of generic names was not taken, its last good entries stay in force", zap.String("file", f.path), zap.Error(err))
			continue
		}
		if f.track.Torn(f.path) {
			continue // it is being written
		}
		f.track.Good()
		j.log.Info("generic names reloaded", zap.String("file", f.path), zap.Int("entries", len(rules)), zap.Int("before", len(f.rules)))
		f.rules, changed = rules, true
	}
	if changed {
		j.rebuild()
	}
}

// rebuild makes the list anew from what is there. The rules are copied, since
// a list in use does not change.
func (j *Judge) rebuild() {
	var parts [][]rule
	for _, f := range j.files {
		parts = append(parts, append([]rule(nil), f.rules...))
	}
	if j.cfg.BuiltIn {
		parts = append(parts, append([]rule(nil), builtIn...))
	}
	j.list.Store(newList(parts...))
}

// builtIn is the built-in list, read once. A fault in it is one of the program;
// a test looks for it.
var builtIn, _ = parse("built-in", BuiltIn)
