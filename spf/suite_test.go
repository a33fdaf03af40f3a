package spf

import (
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"postern/internal/dnstest"
	"postern/policy"
)

// scenario is one document of the openspf.org test suites.
type scenario struct {
	Description string
	Tests       map[string]suiteTest
	ZoneData    map[string][]yaml.Node `yaml:"zonedata"`
}

type suiteTest struct {
	Helo, Host, MailFrom, Explanation string
	Result                            words
}

// words is a string or a list of them.
type words []string

func (w *words) UnmarshalYAML(n *yaml.Node) error {
	if n.Kind == yaml.SequenceNode {
		return n.Decode((*[]string)(w))
	}
	*w = words{n.Value}
	return nil
}

func (s *suiteTest) UnmarshalYAML(n *yaml.Node) error {
	var fields map[string]yaml.Node
	if err := n.Decode(&fields); err != nil {
		return err
	}
	for key, value := range fields {
		var err error
		switch key {
		case "helo":
			s.Helo = value.Value
		case "host":
			s.Host = value.Value
		case "mailfrom":
			s.MailFrom = value.Value
		case "explanation":
			s.Explanation = value.Value
		case "result":
			err = value.Decode(&s.Result)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// moduleDir is where go/spf lies, which brings the suites.
func moduleDir(t *testing.T) string {
	t.Helper()
	out, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "blitiri.com.ar/go/spf").Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

func scenarios(t *testing.T, file string) []scenario {
	t.Helper()
	f, err := os.Open(filepath.Join(moduleDir(t), "testdata", file))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close() //nolint:errcheck // only read
	var all []scenario
	for d := yaml.NewDecoder(f); ; {
		var s scenario
		err := d.Decode(&s)
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(s.Tests) > 0 {
			all = append(all, s)
		}
	}
}

// load puts a scenario's zone into a DNS server.
func load(t *testing.T, srv *dnstest.Server, zone map[string][]yaml.Node) {
	t.Helper()
	for name, records := range zone {
		name = strings.TrimSuffix(name, ".")
		hasTXT := slices.ContainsFunc(records, func(n yaml.Node) bool {
			return n.Kind == yaml.MappingNode && n.Content[0].Value == "TXT" && n.Content[1].Value != "NONE"
		})
		noTXT := false
		var spf [][]string
		for _, n := range records {
			if n.Kind == yaml.ScalarNode { // "TIMEOUT"
				srv.Behave(name, dnstest.ServFail)
				continue
			}
			var fields map[string]yaml.Node
			if err := n.Decode(&fields); err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			for kind, value := range fields {
				var w words
				if err := value.Decode(&w); err != nil {
					t.Fatalf("%s: %v", name, err)
				}
				switch kind {
				case "TXT":
					if noTXT = w[0] == "NONE"; !noTXT {
						addTXT(srv, name, w...)
					}
				case "SPF":
					spf = append(spf, w)
				case "TIMEOUT", "SERVFAIL", "CNAMELOOP": // for what is not there
					if hasTXT {
						continue
					}
					// SERVFAIL is sooner than waiting for a time-out, and the
					// same to SPF (RFC 7208 section 2.6.6).
					srv.Behave(name, dnstest.ServFail)
				case "MX":
					host := "."
					if w[1] != "" {
						host = owner(w[1])
					}
					srv.Add(owner(name) + " 3600 IN MX " + w[0] + " " + host)
				case "PTR", "CNAME":
					srv.Add(owner(name) + " 3600 IN " + kind + " " + owner(w[0]))
				default: // A, AAAA
					srv.Add(owner(name) + " 3600 IN " + kind + " " + w[0])
				}
			}
		}
		for _, w := range spf { // the suites want type SPF to be read as TXT
			if !hasTXT && !noTXT {
				addTXT(srv, name, w...)
			}
		}
	}
}

// otherwise are the tests whose answer differs from the suite, and why.
var otherwise = map[string]string{
	"default-modifier":           "default= is no modifier of RFC 7208",
	"default-modifier-harsh":     "default= is no modifier of RFC 7208",
	"resolution-with-10-lookups": "the targets of its includes have one label, which RFC 7208 section 7.1 does not allow",
}

// The suites of openspf.org for RFC 7208 and RFC 4408, of pyspf and of go/spf
// through the whole check, the resolver, and DNS packets.
func TestSuites(t *testing.T) {
	for _, file := range []string{"rfc7208-tests.yml", "rfc4408-tests.yml", "pyspf-tests.yml", "blitirispf-tests.yml"} {
		t.Run(file, func(t *testing.T) {
			tests := 0
			for _, s := range scenarios(t, file) {
				t.Run(strings.ReplaceAll(s.Description, "/", " "), func(t *testing.T) {
					w := newWorld(t, func(c *Config) {
						c.Explanation = true
						c.Skip = nil
						c.Reply = "550 5.7.23 {explanation}"
						c.WidestIPv4, c.WidestIPv6 = 0, 0
					})
					load(t, w.dns, s.ZoneData)
					for name, test := range s.Tests {
						tests++
						w.suite(name, test)
					}
				})
			}
			if tests < 5 {
				t.Errorf("only %d tests were found", tests)
			}
		})
	}
}

func (w *world) suite(name string, test suiteTest) {
	req := w.mail(test.Host, test.Helo, test.MailFrom)
	start := time.Now()
	v := w.ask(req)
	got := req.Facts.SPF.Result
	if got == policy.SPFTooWide {
		got = "pass"
	}
	if req.Sender.Domain != "" && !strings.Contains(req.Sender.Domain, ".") {
		test.Result = words{"none"} // RFC 7208 section 4.3: not multi-label
	}
	if why := otherwise[name]; why != "" {
		w.tb.Logf("%s: %s, the suite says %s: %s", name, got, test.Result, why)
		return
	}
	if !slices.Contains(test.Result, got) {
		w.tb.Errorf("%s: %s, want %s (%s; %v)", name, got, test.Result, v.Detail, time.Since(start))
		return
	}
	if got != "fail" || test.Explanation == "" {
		return
	}
	_, words, _ := strings.Cut(v.Reply.Text, " says: ")
	if want := test.Explanation; want == "DEFAULT" && words != "" || want != "DEFAULT" && !strings.EqualFold(words, want) {
		w.tb.Errorf("%s: explained by %q, want %q", name, words, want)
	}
}
