package known

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/conf"
	"postern/internal/mailaddr"
)

func TestShared(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	cfg := DefaultConfig()
	cfg.SharedDomains = []string{
		file("a.list", "# ours\nmailbox.example # free\n!good.mailbox.example\n!gmail.com\n.Bücher.example\nfree.*\n!free.co.uk\n"),
		file("b.list", "gmail.com\n!mailbox.example\nonly.example\n"),
	}
	s, err := newShared(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	for domain, want := range map[string]string{
		"mailbox.example": "a.list:2", "x.mailbox.example": "a.list:2", "a.b.mailbox.example": "a.list:2", "mymailbox.example": "",
		"good.mailbox.example": "", "x.good.mailbox.example": "", "example": "", "": "",
		"gmail.com": "", "googlemail.com": "built-in:", "x.googlemail.com": "built-in:",
		"xn--bcher-kva.example": "a.list:5", "only.example": "b.list:3",
		"free.example": "a.list:6", "free.com.au": "a.list:6", "x.free.de": "a.list:6", "free.co.uk": "", "x.free.co.uk": "", "free.fr": "built-in:", "notfree.de": "", "free": "",
		"yahoo.co.jp": "built-in:", "yahoo.com": "built-in:", "mail.yahoo.com": "built-in:", "yahoo.evil.example": "", "partner.onmicrosoft.com": "built-in:",
	} {
		got := s.why(domain)
		if base := filepath.Base(got); (want == "") != (got == "") || !strings.HasPrefix(base, want) {
			t.Errorf("%s: %q, want %q", domain, got, want)
		}
	}
	cfg.BuiltIn, cfg.SharedDomains = false, nil
	if s, err = newShared(&cfg); err != nil || s.why("yahoo.com") != "" {
		t.Errorf("without the built-in list: %q, %v", s.why("yahoo.com"), err)
	}
	cfg.SharedDomains = []string{file("bad.list", "fine.example\ncom\nfree.mail.*\nx@mail.example\na b.example\n!\n*.example\nfine..example\n")}
	_, err = newShared(&cfg)
	faults, ok := err.(conf.Faults)
	if !ok || len(faults) != 7 {
		t.Fatalf("%v", err)
	}
	for i, f := range faults {
		if f.Line != i+2 {
			t.Errorf("%v", f)
		}
	}
	if cfg.SharedDomains = []string{filepath.Join(dir, "none")}; err == nil {
		t.Error("no error")
	}
	var fs conf.Faults
	if cfg.Validate("known", &fs); len(fs) != 1 {
		t.Errorf("%v", fs)
	}
}

// The shipped list has no faults, no line twice and none that another covers,
// is dated, and names no public suffix.
func TestShippedList(t *testing.T) {
	rules := map[string]sharedRule{}
	if faults := parseShared("built-in", BuiltIn, rules); faults != nil {
		t.Fatal(faults)
	}
	lines := 0
	for line := range strings.Lines(BuiltIn) {
		line, _, _ = strings.Cut(line, "#")
		name := strings.TrimSpace(line)
		if name == "" {
			continue
		}
		lines++
		if strings.HasSuffix(name, ".*") {
			continue
		}
		if mailaddr.Domain(name) != name {
			t.Errorf("%s is not in the compared form", name)
		}
		if mailaddr.OrgDomain(name) == "" {
			t.Errorf("%s is a public suffix", name)
		}
		without := map[string]sharedRule{}
		for other, r := range rules {
			if other != name {
				without[other] = r
			}
		}
		if by := (&shared{without}).why(name); by != "" {
			t.Errorf("%s stands there already: %s", name, by)
		}
	}
	if lines != len(rules) || lines < 150 {
		t.Errorf("%d lines, %d rules", lines, len(rules))
	}
	if !strings.Contains(BuiltIn, "as of 2026-11-27") {
		t.Error("no date")
	}
	for _, name := range []string{"example.org", "microsoft.com", "google.com", "bund.de", "gov.uk"} {
		if by := (&shared{rules}).why(name); by != "" {
			t.Errorf("%s: %s", name, by)
		}
	}
}

func FuzzShared(f *testing.F) {
	f.Add("mailbox.example\n!good.mailbox.example\nfree.*", "x.good.mailbox.example")
	f.Add("..\n.*\n!*\n\xff.example", "\xff.example")
	f.Fuzz(func(t *testing.T, list, domain string) {
		rules := map[string]sharedRule{}
		faults := parseShared("f", list, rules)
		if n := strings.Count(list, "\n") + 1; len(rules)+len(faults) > n {
			t.Fatalf("%d rules, %d faults of %d lines", len(rules), len(faults), n)
		}
		domain = mailaddr.Domain(domain)
		why := (&shared{rules}).why(domain)
		if why == "" {
			return
		}
		// Who is covered is covered below, too, unless a line says otherwise.
		if below := (&shared{rules}).why("zz--no-line." + domain); below != why && mailaddr.OrgDomain(domain) != "" && rules["zz--no-line."+domain] == (sharedRule{}) {
			t.Errorf("%q: %s, below %s", domain, why, below)
		}
	})
}
