package lookup

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
)

// write writes a file as by an editor that was done long before at.
func write(t testing.TB, path, text string, at time.Time) string {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path+".new", at, at); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
	return path
}

var longAgo = time.Unix(1e9, 0)

func newTable(t testing.TB, cfgs map[string]TableConfig) *Tables {
	t.Helper()
	tables, faults := NewTables(cfgs, zap.NewNop(), nil)
	if faults != nil {
		t.Fatal(faults)
	}
	return tables
}

// answers asks a table and returns value and place, the directory left out.
func answers(t *testing.T, tables *Tables, name, key string) string {
	t.Helper()
	a, err := tables.Explain(t.Context(), name, key)
	if err != nil {
		return "error: " + err.Error()
	}
	value, found, err := tables.Maps()[name].Lookup(t.Context(), key)
	if err != nil || found != a.Found || value != a.Value {
		t.Errorf("%s %q: Lookup says %q, %v, %v; Explain %+v", name, key, value, found, err, a)
	}
	if !a.Found {
		return ""
	}
	out := a.Value
	if a.Place != "" {
		out += " " + filepath.Base(a.Place)
	}
	if a.Asked != "" {
		out += " " + a.Asked
	}
	return out
}

func TestTablesAnswerWithTheirPlace(t *testing.T) {
	dir := t.TempDir()
	file := func(name, text string) string { return write(t, filepath.Join(dir, name), text, longAgo) }
	tables := newTable(t, map[string]TableConfig{
		"clients": {Search: SearchAccess, Sources: []string{
			"cidr:" + file("nets", "192.0.2.0/25 REJECT low\n# a comment\n2001:db8::/32 REJECT six\n"),
			"texthash:" + file("names", "example.org  REJECT org\n192.0.2\tDUNNO\nmail.example.org\n   OK\nunknown OK\n"),
			"pcre:" + file("patterns", "/^dyn-(\\d+)\\.(.*)$/ REJECT number $1 of $2\n/^x(y?)$/ $1\n/^z(.*)$/ OK\n"),
		}},
		"transport": {
			Source: "texthash:" + file("transport", "example.org smtp:[192.0.2.1]\n.example.org smtp:[192.0.2.2]\nbob@example.org local:\n* error:no\n"),
			Search: SearchTransport, Delimiters: "+",
		},
		"virtual": {
			Source: "texthash:" + file("virtual", "bob@example.org alice@example.net, carol\n@example.com @example.net\nroot admin@example.net\nexample.com x\n"),
			Search: SearchVirtual, Delimiters: "+", LocalDomains: []string{"Example.NET"},
		},
		"recipients": {Source: "texthash:" + file("recipients", "bob@example.org x\n"), Search: SearchMailbox, Delimiters: "+"},
		"relay":      {Source: "texthash:" + file("domains", "example.org x\n.example.com y\n"), Search: SearchDomain},
		"relay-dot":  {Source: "texthash:" + filepath.Join(dir, "domains"), Search: SearchDomain, Parents: "dot"},
		"tls":        {Source: "texthash:" + file("tls", "[mail.example.org]:587 secure match=nexthop\nexample.org encrypt\n"), Search: SearchExact},
		"headers":    {Source: "regexp:" + file("headers", "/^Subject:/ WARN subject\n")},
	})
	for _, tt := range []struct{ name, key, want string }{
		{"clients", "192.0.2.1", "REJECT low nets:1"},
		{"clients", "192.0.2.200", "DUNNO names:2 192.0.2"},
		{"clients", "2001:db8:1::1", "REJECT six nets:3"},
		{"clients", "2001:db9::1", ""},
		{"clients", "a.Mail.Example.ORG", "OK names:3 Mail.Example.ORG"},
		{"clients", "MAIL.example.org", "OK names:3"},
		{"clients", "b.example.org", "REJECT org names:1 example.org"},
		{"clients", "dyn-12.example.org", "REJECT number 12 of example.org patterns:1"},
		{"clients", "unknown", "OK names:5"},
		{"clients", "a@z.example.org", "REJECT org names:1 example.org"},
		{"clients", "example.net", ""},
		{"clients", "xy", "y patterns:2"},
		{"clients", "x", "error: " + dir + "/patterns:2: the result is empty, which Postfix does not allow"},
		{"clients", "sub.zz", ""}, // patterns see the whole key only
		{"clients", "z.zz", "OK patterns:3"},
		{"transport", "bob@example.org", "local: transport:3"},
		{"transport", "bob+x@example.org", "local: transport:3 bob@example.org"},
		{"transport", "al@example.org", "smtp:[192.0.2.1] transport:1 example.org"},
		{"transport", "al@a.b.example.org", "smtp:[192.0.2.2] transport:2 .example.org"},
		{"transport", "al@example.net", ""},
		{"transport", "*", "error:no transport:4"},
		{"virtual", "bob@example.org", "alice@example.net, carol virtual:1"},
		{"virtual", "Bob+x@example.org", "alice+x@example.net, carol+x virtual:1 Bob@example.org"},
		{"virtual", "any+x@example.com", "@example.net virtual:2 @example.com"},
		{"virtual", "root@example.net", "admin@example.net virtual:3 root"},
		{"virtual", "root+y@example.net", "admin+y@example.net virtual:3 root"},
		{"virtual", "root@example.org", ""},
		{"virtual", "example.com", "x virtual:4"},
		{"virtual", "*", ""},
		{"recipients", "bob+x@example.org", "x recipients:1 bob@example.org"},
		{"recipients", "al@example.org", ""},
		{"relay", "sub.example.org", "x domains:1 example.org"},
		{"relay", "sub.example.com", ""},
		{"relay-dot", "sub.example.org", ""},
		{"relay-dot", "sub.example.com", "y domains:2 .example.com"},
		{"tls", "[mail.example.org]:587", "secure match=nexthop tls:1"},
		{"tls", "Example.ORG", "encrypt tls:2"},
		{"tls", "sub.example.org", ""}, // Postfix asks for .example.org itself
		{"headers", "subject: hi there", "WARN subject headers:1"},
	} {
		if got := answers(t, tables, tt.name, tt.key); got != tt.want {
			t.Errorf("%s %q: %q, want %q", tt.name, tt.key, got, tt.want)
		}
	}
	if _, err := tables.Explain(t.Context(), "none", "k"); !errors.Is(err, ErrUnknown) {
		t.Error(err)
	}
	if n := len(tables.Status()); n != 8 || len(tables.Names()) != 8 {
		t.Errorf("%d tables", n)
	}
}

func TestDomainMapping(t *testing.T) {
	dir := t.TempDir()
	recipients := write(t, filepath.Join(dir, "recipients"), "bob@b.example x\n\"al b\"@b.example x\n", longAgo)
	mapping := map[string]string{"a.example": "b.example", "B\u00fccher.example": "b.example."}
	tables := newTable(t, map[string]TableConfig{
		"all":        {MapDomains: mapping, AnswerDomains: true},
		"quiet":      {MapDomains: mapping},
		"known":      {MapDomains: mapping, ExistsIn: "recipients", AnswerDomains: true},
		"further":    {MapDomains: map[string]string{"c.example": "a.example"}, ExistsIn: "known"},
		"recipients": {Source: "texthash:" + recipients, Search: SearchMailbox, Delimiters: "+"},
	})
	for _, tt := range []struct{ name, key, want string }{
		{"all", "bob@a.example", "bob@b.example"},
		{"all", "Bob+x@A.Example", "Bob+x@b.example"},
		{"all", "bob@xn--bcher-kva.example", "bob@b.example"},
		{"all", "bob@b\u00fccher.example", "bob@b.example"},
		{"all", `"a b"@a.example`, `"a b"@b.example`},
		{"all", `"a@c"@a.example`, `"a@c"@b.example`},
		{"all", "a b@a.example", ""},
		{"all", "x,y@a.example", ""},
		{"all", "@a.example", ""},
		{"all", "bob@sub.a.example", ""},
		{"all", "bob@b.example", ""},
		{"all", "a.example", "b.example"},
		{"all", "b.example", ""},
		{"all", "*", ""},
		{"all", "<>", ""},
		{"quiet", "a.example", ""},
		{"quiet", "bob@a.example", "bob@b.example"},
		{"known", "bob@a.example", "bob@b.example"},
		{"known", "bob+x@a.example", "bob+x@b.example"},
		{"known", "al@a.example", ""},
		{"known", `"al b"@a.example`, `"al b"@b.example`},
		{"known", "a.example", "b.example"},
		{"further", "bob@c.example", "bob@a.example"},
		{"further", "al@c.example", ""},
	} {
		if got := answers(t, tables, tt.name, tt.key); got != tt.want {
			t.Errorf("%s %q: %q, want %q", tt.name, tt.key, got, tt.want)
		}
	}
	a, err := tables.Explain(t.Context(), "all", "bob@a.example")
	if err != nil || a.Pattern != "map_domains.a.example" {
		t.Errorf("%+v, %v", a, err)
	}
	if st := tables.Status(); st[0].Domains != 2 {
		t.Errorf("%+v", st)
	}
}

func TestTableFaults(t *testing.T) {
	dir := t.TempDir()
	good := write(t, filepath.Join(dir, "good"), "a b\n", longAgo)
	bad := write(t, filepath.Join(dir, "bad"), "a b\nno-result\nc \xff\n", longAgo)
	badPattern := write(t, filepath.Join(dir, "pattern"), "/(/ x\n/a/\n/b/ \xff\n", longAgo)
	many := write(t, filepath.Join(dir, "many"), strings.Repeat("x\n", 100), longAgo)
	for _, tt := range []struct {
		name string
		cfg  TableConfig
		want []string
	}{
		{"t", TableConfig{}, []string{"tables.t: there is neither source, sources nor map_domains"}},
		{"t", TableConfig{Source: "cidr:/x", Sources: []string{"cidr:/y"}}, []string{"tables.t.source: there are sources as well"}},
		{"t", TableConfig{Source: "cidr:/x", MapDomains: map[string]string{}}, []string{"tables.t: a table has either files or map_domains"}},
		{"t", TableConfig{Sources: []string{"hash:/x", "x", "cidr:x", "mysql:/y", "cidr:/no/such/file", "cidr:" + dir}}, []string{
			"tables.t.sources[0]: hash tables are read from their source: texthash:/x",
			`tables.t.sources[1]: "x": want cidr:PATH`,
			`tables.t.sources[2]: "cidr:x": the path must be absolute`,
			`tables.t.sources[3]: "mysql:/y": want cidr:PATH`,
			"tables.t.sources[4]: /no/such/file cannot be read: no such file or directory",
			"tables.t.sources[5]: " + dir + " cannot be read: it is not a regular file",
		}},
		{"t", TableConfig{Source: "texthash:" + good}, []string{"tables.t.search: it must be set for a texthash"}},
		{"t", TableConfig{Source: "texthash:" + good, Search: "acess"}, []string{`tables.t.search: there is no search "acess" (one of [exact access`}},
		{"t", TableConfig{Source: "texthash:" + good, Search: "virtual", Parents: "dot"}, []string{`tables.t.parents: search = "virtual" asks for no parent domains`}},
		{"t", TableConfig{Source: "texthash:" + good, Search: "access", Parents: "dots"}, []string{`tables.t.parents: "dots" is neither`}},
		{"t", TableConfig{Source: "texthash:" + good, Search: "access", Delimiters: "+ @"}, []string{`tables.t.delimiters: "+ @" holds`}},
		{"t", TableConfig{Source: "texthash:" + good, Search: "access", LocalDomains: []string{"b.example"}}, []string{`tables.t.local_domains: it needs search`}},
		{"t", TableConfig{Source: "texthash:" + good, Search: "virtual", LocalDomains: []string{"b.example", "a b"}}, []string{`tables.t.local_domains[1]: "a b" is not a domain`}},
		{"t", TableConfig{Source: "texthash:" + good, Search: "exact", ExistsIn: "t"}, []string{"tables.t.exists_in: it has no effect"}},
		{"t", TableConfig{Source: "texthash:" + bad, Search: "exact"}, []string{bad + `:2:10: no result after "no-result"`, bad + ":3:1: not UTF-8 text"}},
		{"t", TableConfig{Source: "pcre:" + badPattern}, []string{badPattern + ":1:", badPattern + ":2:4: no result after the pattern"}},
		{"t", TableConfig{Source: "pcre:" + write(t, filepath.Join(dir, "p2"), "/b/ \xff\n", longAgo)}, []string{"/p2:1: the result is not UTF-8"}},
		{"t", TableConfig{Source: "texthash:" + many, Search: "exact"}, []string{many + ": and more faults"}},
		{"sasl_passwd", TableConfig{Source: "texthash:" + good, Search: "exact"}, []string{`tables.sasl_passwd: "sasl_passwd" looks like a table of passwords`}},
		{"t", TableConfig{Source: "texthash:/etc/postfix/SASL_passwd", Search: "exact"}, []string{`tables.t.source: "SASL_passwd" looks like a table of passwords`}},
		{"a:b", TableConfig{Source: "texthash:" + good, Search: "exact"}, []string{`"a:b" cannot be the name of a table`}},
		{"a b", TableConfig{Source: "texthash:" + good, Search: "exact"}, []string{`"a b" cannot be the name of a table`}},
		{"", TableConfig{Source: "texthash:" + good, Search: "exact"}, []string{`"" cannot be the name of a table`}},
		{"unknown", TableConfig{Source: "texthash:" + good, Search: "exact"}, []string{`the name "unknown" is taken`}},
		{"t", TableConfig{MapDomains: map[string]string{"a.example": "b@c", "": "b.example", "x..y": "b.example", ".z": "a"}}, []string{
			`tables.t.map_domains.: "" is not a domain`, `tables.t.map_domains..z: ".z" is not`, `tables.t.map_domains.a.example: "b@c" is not`, `map_domains.x..y: "x..y" is not`,
		}},
		{"t", TableConfig{MapDomains: map[string]string{"a.example": "b.example", "A.example.": "c.example"}}, []string{"tables.t.map_domains.a.example: a.example is mapped twice"}},
		{"t", TableConfig{MapDomains: map[string]string{"a.example": "b.example", "b.example": "c.example", "c.example": "b.example"}}, []string{
			"tables.t.map_domains.b.example: b.example leads back to itself", "tables.t.map_domains.c.example: c.example leads back to itself",
		}},
		{"t", TableConfig{MapDomains: map[string]string{"a.example": "a.example"}}, []string{"a.example leads back to itself"}},
		{"t", TableConfig{MapDomains: map[string]string{"a.example": "b.example"}, ExistsIn: "u"}, []string{`tables.t.exists_in: there is no table "u"`}},
		{"t", TableConfig{MapDomains: map[string]string{"a.example": "b.example"}, ExistsIn: "t"}, []string{"ask each other"}},
		{"t", TableConfig{MapDomains: map[string]string{"a.example": "b.example"}, Search: "exact", Parents: "dot", Delimiters: "+", LocalDomains: []string{"a"}}, []string{
			"tables.t.search: it has no effect", "tables.t.parents: it has", "tables.t.delimiters: it has", "tables.t.local_domains: it has",
		}},
	} {
		var faults conf.Faults
		ValidateTables("tables", map[string]TableConfig{tt.name: tt.cfg}, &faults)
		if len(faults) < len(tt.want) {
			t.Errorf("%+v: %d faults, want %d:\n%v", tt.cfg, len(faults), len(tt.want), faults)
		}
		for _, want := range tt.want {
			if !strings.Contains(faults.Error(), want) {
				t.Errorf("%+v: want %q in\n%v", tt.cfg, want, faults)
			}
		}
		if got, fs := NewTables(map[string]TableConfig{tt.name: tt.cfg}, zap.NewNop(), nil); got != nil || len(fs) != len(faults) {
			t.Errorf("%+v: tables in spite of faults", tt.cfg)
		}
	}
	one := TableConfig{MapDomains: map[string]string{"a.example": "b.example"}, ExistsIn: "y"}
	two := TableConfig{MapDomains: map[string]string{"b.example": "c.example"}, ExistsIn: "x"}
	var faults conf.Faults
	ValidateTables("tables", map[string]TableConfig{"x": one, "y": two}, &faults)
	if !strings.Contains(faults.Error(), `the tables "x" and "y" ask each other`) {
		t.Errorf("a circle: %v", faults)
	}
}

func TestTablesAreReadAgain(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "tls")
	synctest.Test(t, func(t *testing.T) {
		now := time.Now()
		write(t, path, "example.org may\n", now.Add(-time.Hour))
		other := write(t, filepath.Join(dir, "other"), "example.net may\n", now.Add(-time.Hour))
		core, logs := observer.New(zap.InfoLevel)
		reg := prometheus.NewPedanticRegistry()
		metrics := NewTableMetrics(reg)
		tables, faults := NewTables(map[string]TableConfig{
			"tls": {Sources: []string{"texthash:" + path, "texthash:" + other}, Search: SearchExact},
		}, zap.New(core), metrics)
		if faults != nil {
			t.Fatal(faults)
		}
		tables.Start(2 * time.Second)
		tables.Start(2 * time.Second) // once is enough
		defer tables.Stop()
		gauge := func(want string) {
			t.Helper()
			if err := testutil.GatherAndCompare(reg, strings.NewReader(want), "postern_lookup_table_rules", "postern_lookup_table_faulty"); err != nil {
				t.Error(err)
			}
		}
		head := "# HELP postern_lookup_table_faulty Files of the table whose last edit was not taken.\n# TYPE postern_lookup_table_faulty gauge\n"
		rules := "# HELP postern_lookup_table_rules Rules of the table in force.\n# TYPE postern_lookup_table_rules gauge\n"
		look := func(key, want string) {
			t.Helper()
			time.Sleep(5 * time.Second)
			if got := answers(t, tables, "tls", key); got != want {
				t.Errorf("%q: %q, want %q", key, got, want)
			}
		}
		look("example.org", "may tls:1")
		write(t, path, "# now strict\nexample.org encrypt\nexample.com secure\n", now.Add(-30*time.Minute))
		look("example.org", "encrypt tls:2")
		look("example.net", "may other:1")
		gauge(head + "postern_lookup_table_faulty{map=\"tls\"} 0\n" + rules + "postern_lookup_table_rules{map=\"tls\"} 3\n")

		write(t, path, "example.org\n", now.Add(-20*time.Minute)) // broken
		look("example.org", "encrypt tls:2")
		st := tables.Status()[0].Sources
		if !strings.Contains(st[0].Fault, path+":1:12: no result") || st[0].FaultAt.IsZero() || st[0].Rules != 2 || st[1].Fault != "" {
			t.Errorf("status %+v", st)
		}
		gauge(head + "postern_lookup_table_faulty{map=\"tls\"} 1\n" + rules + "postern_lookup_table_rules{map=\"tls\"} 3\n")
		if n := logs.FilterMessage("a table was not taken, its last good version stays in force").Len(); n != 1 {
			t.Errorf("told %d times of a broken edit", n)
		}
		if fs := tables.Reload(); fs == nil {
			t.Error("Reload does not tell of the fault")
		}

		if err := os.Remove(path); err != nil { // gone
			t.Fatal(err)
		}
		look("example.org", "encrypt tls:2")
		write(t, path, "example.org none\n", now.Add(-10*time.Minute))
		look("example.org", "none tls:1")
		if st := tables.Status()[0].Sources[0]; st.Fault != "" || st.Rules != 1 || !st.FaultAt.IsZero() {
			t.Errorf("status %+v", st)
		}
		if fs := tables.Reload(); fs != nil {
			t.Error(fs)
		}
		if refused, taken := testutil.ToFloat64(metrics.reloads[0]), testutil.ToFloat64(metrics.reloads[1]); refused != 3 || taken != 5 {
			t.Errorf("reloads: %v refused, %v taken", refused, taken)
		}
		// Those that follow take the metrics over before these end.
		next, _ := NewTables(map[string]TableConfig{"new": {Source: "texthash:" + path, Search: SearchExact}}, zap.NewNop(), metrics)
		next.Start(time.Second)
		tables.Stop()
		tables.Stop()
		gauge(head + "postern_lookup_table_faulty{map=\"new\"} 0\n" + rules + "postern_lookup_table_rules{map=\"new\"} 1\n")
		next.Stop()
		gauge("")
	})
}

func TestReloadUnderLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "t")
	write(t, path, "k 0\nsame x\n", longAgo)
	tables := newTable(t, map[string]TableConfig{"t": {Source: "texthash:" + path, Search: SearchExact}})
	m := tables.Maps()["t"]
	done := make(chan struct{})
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				if v, found, err := m.Lookup(t.Context(), "same"); v != "x" || !found || err != nil {
					t.Errorf("%q, %v, %v", v, found, err)
					return
				}
			}
		})
	}
	for i := range 100 {
		text := "same x\n"
		if i%3 == 0 {
			text = "same\n" // broken
		}
		write(t, path, text, longAgo.Add(time.Duration(i)*time.Second))
		tables.poll(time.Now())
	}
	close(done)
	wg.Wait()
}
