package greylist_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"postern/greylist"
	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/names"
	"postern/policy"
)

func manual(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile("../docs/checks/greylist.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// examples returns the blocks of the manual, their files put into a directory
// of the test.
func examples(t *testing.T) []greylist.Config {
	t.Helper()
	dir := t.TempDir()
	for _, name := range []string{"whitelist_clients", "whitelist_recipients", "greylist_exceptions.cidr"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	files := strings.NewReplacer("/etc/postgrey/", dir+"/", "/etc/postfix/", dir+"/", "/etc/postern/", "../configs/")
	var out []greylist.Config
	for _, part := range strings.Split(manual(t), "```toml\n")[1:] {
		block, _, _ := strings.Cut(part, "```")
		doc := struct {
			Greylist greylist.Config `toml:"greylist"`
			Names    names.Config    `toml:"names"`
		}{greylist.DefaultConfig(), names.DefaultConfig()}
		if err := toml.NewDecoder(strings.NewReader(files.Replace(block))).DisallowUnknownFields().Decode(&doc); err != nil {
			t.Fatalf("%v in\n%s", err, block)
		}
		given := struct {
			Greylist map[string]any `toml:"greylist"`
		}{}
		if err := toml.Unmarshal([]byte(block), &given); err != nil {
			t.Fatal(err)
		}
		doc.Greylist.Fill(func(key string) bool { _, ok := given.Greylist[key]; return ok })
		var fs conf.Faults
		if doc.Greylist.Validate("greylist", &fs); fs != nil {
			t.Errorf("%v in\n%s", fs, block)
		}
		if strings.Contains(block, "[greylist]") {
			out = append(out, doc.Greylist)
		}
	}
	return out
}

// The examples do what is said about them.
func TestManualsExamples(t *testing.T) {
	all := examples(t)
	if len(all) != 3 {
		t.Fatalf("%d examples", len(all))
	}
	if all[0].Profile != greylist.Strict || all[0].When != greylist.Always || all[1].When != greylist.Graded {
		t.Errorf("profile = %q, when = %q", all[0].Profile, all[0].When)
	}
	w := newWorld(t, func(c *greylist.Config) { *c = all[1]; c.When = greylist.Always })
	const other, exception = "203.0.113.7", "greylist-exception"
	for _, tt := range []struct{ client, name, sender, rcpt, reason string }{
		{other, "", "a@example.net", "b@example.com", first},
		{other, "", "a@example.net", "postmaster", exception},
		{"192.0.2.7", "", "a@example.net", "b@example.com", exception},
		{"192.0.2.66", "", "a@example.net", "b@example.com", first},
		{"2001:db8::7", "", "a@example.net", "b@example.com", exception},
		{other, "mx.example.net", "a@example.net", "b@example.com", exception},
		{other, "", "a@www.example.org", "b@example.com", exception},
		{other, "", "a@example.net", "sales@example.com", exception},
		{other, "", "a@example.net", "b@one.lab.example.com", exception},
		{other, "", "a@example.net", "ceo@example.com", first},
		{other, "smtp.southwest.com", "a@example.net", "c@example.com", exception},
	} {
		v := w.want(tt.client+" "+tt.name+" "+tt.sender+" "+tt.rcpt, tt.reason, w.request(tt.client, tt.name, tt.sender, tt.rcpt))
		if tt.rcpt == "ceo@example.com" && !strings.HasSuffix(v.Reply.Text, "in 30 seconds") {
			t.Errorf("reply %v", v.Reply)
		}
	}
}

// The table of senders is what is done with them.
func TestManualsSenders(t *testing.T) {
	rows := regexp.MustCompile("(?m)^\\| `([^` ]+@[^` ]+)` \\| `([^` ]+)` \\|").FindAllStringSubmatch(manual(t), -1)
	if len(rows) != 5 {
		t.Fatalf("%d senders", len(rows))
	}
	for _, row := range rows {
		w := newWorld(t, nil)
		req := w.request("192.0.2.7", "", row[1], "bob@example.com")
		req.DryRun, req.Probe = true, new(policy.Probe)
		w.ask(req)
		i := slices.IndexFunc(req.Probe.Notes, func(n policy.Note) bool { return n.What == "sender" })
		if i < 0 || req.Probe.Notes[i].Value != row[2] {
			t.Errorf("%s: %+v, want %s", row[1], req.Probe.Notes, row[2])
		}
	}
}

// The manual names every reason and metric there is, and no others.
func TestManualsNames(t *testing.T) {
	text := manual(t)
	var code []byte
	for _, file := range []string{"check.go", "vouch.go"} {
		b, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		code = append(code, b...)
	}
	var want []string
	for _, m := range regexp.MustCompile(`"(greylist-[a-z-]+)"`).FindAllStringSubmatch(string(code), -1) {
		want = append(want, m[1])
	}
	for s := greylist.FirstContact; s <= greylist.Overdue; s++ {
		want = append(want, "greylist-"+s.String())
	}
	w := newWorld(t, nil)
	w.check.Start()
	if faults := w.check.Reload(); faults != nil {
		t.Fatal(faults)
	}
	families, err := w.reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		name := f.GetName()
		if labels := f.GetMetric()[0].GetLabel(); len(labels) > 0 {
			name += "{" + labels[0].GetName() + "}"
		}
		want = append(want, name)
	}
	// These are the store's.
	for _, name := range []string{"waiting", "waiting_life_seconds", "pushed_out_total", "unremembered_total"} {
		want = append(want, "postern_greylist_"+name)
	}
	var got []string
	for _, m := range regexp.MustCompile("`(greylist-[a-z-]+|postern_greylist_[a-z_{}]+)`").FindAllStringSubmatch(text, -1) {
		if m[1] != "greylist-" {
			got = append(got, m[1])
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if want, got = slices.Compact(want), slices.Compact(got); !slices.Equal(want, got) {
		t.Errorf("the manual names\n%v\nthere are\n%v", got, want)
	}
}

// Each shipped exception loads, is a name with its reason beside it, and lets
// past whom it names.
func TestShippedExceptions(t *testing.T) {
	const path = "../configs/greylist-exceptions.list"
	w := newWorld(t, func(c *greylist.Config) { c.Skip, c.Exceptions = nil, []string{path} })
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for line := range strings.Lines(string(text)) {
		entry, reason, _ := strings.Cut(strings.TrimSpace(line), "#")
		name, isSuffix := strings.CutPrefix(strings.TrimSpace(entry), ".")
		if name == "" {
			continue
		}
		n++
		if !isSuffix || len(strings.TrimSpace(reason)) < 10 || mailaddr.OrgDomain(name) == "" {
			t.Errorf("%q: want a domain with a dot in front, and a reason", line)
		}
		w.want(name, "greylist-exception", w.request("192.0.2.7", "mx."+name, "a@example.org", "b@example.com"))
	}
	if n == 0 || n != w.check.Lists().Set().Len() {
		t.Errorf("%d lines with entries, %d entries", n, w.check.Lists().Set().Len())
	}
	w.want("nobody of them", first, w.request("192.0.2.7", "mx.example.org", "a@example.org", "b@example.com"))
}
