package known

import (
	"bufio"
	_ "embed"
	"fmt"
	"os"
	"strings"

	"postern/internal/conf"
	"postern/internal/mailaddr"
)

// BuiltIn is the text of the list that is built in, in the form of such files.
//
//go:embed shared-domains.list
var BuiltIn string

// shared are domains whose senders have nothing in common: the mailboxes of a
// free mail provider, the customers of a bulk sender. It does not change.
type shared struct {
	rules map[string]sharedRule // by the domain, "yahoo.*" for one under any public suffix
}

type sharedRule struct {
	except bool
	place  string // "file:line"
}

// maxShared bounds a file.
const maxShared = 1_000_000

// parseShared reads a list: one domain a line, which stands for all below it
// too; "name.*" is name under any public suffix; "!" in front makes an
// exception; # begins a comment.
func parseShared(file, text string, into map[string]sharedRule) (faults conf.Faults) {
	sc := bufio.NewScanner(strings.NewReader(text))
	for n := 1; sc.Scan(); n++ {
		line, _, _ := strings.Cut(sc.Text(), "#")
		line = strings.TrimSpace(line)
		if line == "" {
			continue
		}
		name, except := strings.CutPrefix(line, "!")
		name = strings.TrimPrefix(strings.TrimSpace(name), ".")
		plain, wild := strings.CutSuffix(name, ".*")
		switch {
		case plain == "" || strings.ContainsAny(plain, "@*/! \t") || strings.Contains(plain, "..") || len(plain) > 255:
			faults.Filef(file, n, 0, "%q is no domain", line)
			continue
		case wild && strings.Contains(plain, "."):
			faults.Filef(file, n, 0, "%q: one name before .*", line)
			continue
		case !wild && !strings.Contains(plain, "."):
			faults.Filef(file, n, 0, "%q is a top-level domain", line)
			continue
		}
		name = mailaddr.Domain(plain)
		if wild {
			name += ".*"
		}
		if _, ok := into[name]; !ok { // an earlier list goes first
			into[name] = sharedRule{except, fmt.Sprintf("%s:%d", file, n)}
		}
		if len(into) > maxShared {
			faults.Filef(file, n, 0, "more than %d domains", maxShared)
			return faults
		}
	}
	if err := sc.Err(); err != nil {
		faults.Filef(file, 0, 0, "%v", err)
	}
	return faults
}

func readShared(path string) (map[string]sharedRule, conf.Faults) {
	rules := make(map[string]sharedRule)
	text, err := os.ReadFile(path)
	if err != nil {
		var fs conf.Faults
		fs.Filef(path, 0, 0, "%v", err)
		return nil, fs
	}
	return rules, parseShared(path, string(text), rules)
}

// newShared reads the operator's lists, which go first, and the built-in one.
func newShared(cfg *Config) (*shared, error) {
	s := &shared{rules: make(map[string]sharedRule)}
	for _, path := range cfg.SharedDomains {
		rules, faults := readShared(path)
		if err := faults.Err(); err != nil {
			return nil, err
		}
		for name, r := range rules {
			if _, ok := s.rules[name]; !ok {
				s.rules[name] = r
			}
		}
	}
	if cfg.BuiltIn {
		_ = parseShared("built-in", BuiltIn, s.rules) // a test looks for faults in it
	}
	return s, nil
}

// why returns the place of the line that makes a domain shared, "" when it is
// not. The most specific line decides.
func (s *shared) why(domain string) string {
	for name := domain; name != ""; {
		if r, ok := s.rules[name]; ok {
			if r.except {
				return ""
			}
			return r.place
		}
		_, name, _ = strings.Cut(name, ".")
	}
	label, _, _ := strings.Cut(mailaddr.OrgDomain(domain), ".")
	if r, ok := s.rules[label+".*"]; ok && label != "" && !r.except {
		return r.place
	}
	return ""
}
