package moving

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"
)

const dumpHead = "VERSION=3\nformat=print\ntype=btree\ndb_pagesize=4096\nHEADER=END\n"

func dump(pairs ...string) string {
	var b strings.Builder
	b.WriteString(dumpHead)
	for _, p := range pairs {
		b.WriteString(" " + p + "\n")
	}
	b.WriteString("DATA=END\n")
	return b.String()
}

func at(n int64) time.Time { return time.Unix(n, 0) }

func TestPostgrey(t *testing.T) {
	triplets := dump(
		"192.0.2.0/a@example.org/b@example.com", "1700000000,1700000300",
		"198.51.100.9/x/y@example.org/b@example.com", "1700000000,1700009999",
		"203.0.113.0//b@example.com", "1700000001,1700002000,.77",
		"2001:db8::/a@example.org/local", "1700000002,1700003000",
		"192.0.2.0/waits@example.org/b@example.com", "1700000000,1700000299",
		strings.Repeat("a1", 20), "1700000000,1700000300",
		"192.0.2.0/nobody", "1700000000,1700000300",
		"mx/a@b/c@d", "1700000000,1700000300",
		"192.0.2.0/a@b/c@d", "1700000000",
		`192.0.2.0/\c3\a4\\@example.org/c@example.com`, "1700000100,1700000900",
	)
	clients := dump("192.0.2.25", "7,1700000500", "192.0.2.300", "7,1700000500", "192.0.2.26", "many,1700000500")
	g, err := Postgrey(strings.NewReader(triplets), strings.NewReader(clients), 300)
	if err != nil {
		t.Fatal(err)
	}
	ip := netip.MustParseAddr
	want := []Pass{
		{Time: at(1700000300), Client: ip("192.0.2.25"), Sender: "a@example.org", Recipient: "b@example.com"},
		{Time: at(1700000500), Client: ip("192.0.2.25"), Passes: 7},
		{Time: at(1700000900), Client: ip("192.0.2.25"), Sender: "\xc3\xa4\\@example.org", Recipient: "c@example.com"},
		{Time: at(1700002000), Client: ip("203.0.113.77"), Recipient: "b@example.com"}, // the null sender
		{Time: at(1700003000), Client: ip("2001:db8::"), Sender: "a@example.org", Recipient: "local"},
		{Time: at(1700009999), Client: ip("198.51.100.9"), Sender: "x/y@example.org", Recipient: "b@example.com"},
	}
	if !reflect.DeepEqual(g.Past, want) {
		t.Errorf("got\n%+v\nwant\n%+v", g.Past, want)
	}
	if g.Waiting != 1 || g.Hidden != 1 || g.Unread != 5 || g.First == nil || !strings.Contains(g.First.Error(), `line 8: "192.0.2.300" "7,1700000500" is no client`) {
		t.Errorf("%d wait, %d hidden, %d unread, the first %v", g.Waiting, g.Hidden, g.Unread, g.First)
	}
}

func TestDump(t *testing.T) {
	var got []string
	collect := func(line int, k, v string) { got = append(got, fmt.Sprintf("%d %s %s", line, k, v)) }
	in := "VERSION=3\nformat=bytevalue\ntype=hash\nHEADER=END\n 6162\n 3100\nDATA=END\nVERSION=3\nformat=print\nHEADER=END\n a\\00\n b\nDATA=END\n"
	if err := Dump(strings.NewReader(in), collect); err != nil || !reflect.DeepEqual(got, []string{"5 ab 1", "11 a b"}) {
		t.Errorf("%q, %v", got, err)
	}
	for in, want := range map[string]string{
		"":                            "line 0: the dump ends without DATA=END",
		"a\tb\n":                      "line 1: no dump of db_dump",
		"VERSION=9\n":                 `line 1: a dump of version "9"`,
		"VERSION=3\ntype=recno\n":     `line 2: a database of type "recno"`,
		dumpHead + " a\n b\n":         "line 7: the dump ends without DATA=END",
		dumpHead + "a\nDATA=END\n":    "line 6: keys and values begin with a space",
		dumpHead + " a\\\nDATA=END\n": "line 6: character 3: an escape without two digits",
		dumpHead + " a\\zz\n":         `line 6: character 3: "\\zz" is no escape`,
		"VERSION=3\nHEADER=END\n zz":  "line 3: not hexadecimal",
	} {
		if err := Dump(strings.NewReader(in), func(int, string, string) {}); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%q: %v, want %s", in, err, want)
		}
	}
}

func TestSqlgrey(t *testing.T) {
	zone := time.FixedZone("", 3600)
	want := []Pass{
		{Time: time.Date(2026, 11, 2, 11, 0, 0, 0, zone), First: time.Date(2026, 10, 1, 9, 0, 0, 0, zone), Client: netip.MustParseAddr("192.0.2.0"), Sender: "postmaster@example.org", Passes: 2},
		{Time: time.Date(2026, 11, 5, 0, 0, 0, 0, zone), First: time.Date(2026, 11, 1, 0, 0, 0, 0, zone), Client: netip.MustParseAddr("2001:db8::7"), Sender: "postmaster@o'b.example", Passes: manyPasses},
	}
	for name, in := range map[string]string{
		"sqlite": `PRAGMA foreign_keys=OFF;
BEGIN TRANSACTION;
CREATE TABLE from_awl(sender_name varchar(64) NOT NULL, src varchar(39));
INSERT INTO config VALUES('version','3');
INSERT INTO from_awl VALUES('ann','example.org','192.0.2','2026-10-01 09:00:00','2026-11-02 10:00:00');
INSERT INTO from_awl VALUES('bob','example.org','192.0.2','2026-10-02 09:00:00','2026-11-02 11:00:00');
INSERT INTO from_awl VALUES('-undef-','-undef-','192.0.2','2026-10-02 09:00:00','2026-11-02 11:00:00');
INSERT INTO domain_awl VALUES('o''b.example','2001:db8::7','2026-11-01 00:00:00','2026-11-05 00:00:00');
INSERT INTO connect VALUES('x','y','192.0.2','r@z','2026-11-05 00:00:00');
COMMIT;
`,
		"mysql": "INSERT INTO `from_awl` VALUES ('ann','example.org','192.0.2','2026-10-01 09:00:00','2026-11-02 10:00:00'),('bob','example.org','192.0.2','2026-10-02 09:00:00','2026-11-02 11:00:00');\n" +
			"INSERT INTO `domain_awl` (`src`,`sender_domain`,`last_seen`,`first_seen`) VALUES\n('2001:db8::7','o\\'b.example','2026-11-05 00:00:00','2026-11-01 00:00:00');\n" +
			"INSERT INTO `connect` VALUES ('x','y','192.0.2','r@z','2026-11-05 00:00:00');\n",
		"postgres": "COPY public.from_awl (sender_name, sender_domain, src, first_seen, last_seen) FROM stdin;\n" +
			"ann\texample.org\t192.0.2\t2026-10-01 09:00:00\t2026-11-02 10:00:00\nbob\texample.org\t192.0.2\t2026-10-02 09:00:00\t2026-11-02 11:00:00.0\n\\.\n" +
			"INSERT INTO public.domain_awl (sender_domain, src, first_seen, last_seen) VALUES ('o''b.example', '2001:db8::7', '2026-11-01 00:00:00+01', '2026-11-05 00:00:00+01');\n" +
			"COPY public.connect (sender_name, sender_domain, src, rcpt, first_seen) FROM stdin;\nx\ty\t192.0.2\tr@z\t2026-11-05 00:00:00\n\\.\n",
	} {
		g, err := Sqlgrey(strings.NewReader(in), zone)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for i := range g.Past {
			g.Past[i].Time, g.Past[i].First = g.Past[i].Time.In(zone), g.Past[i].First.In(zone)
		}
		if !reflect.DeepEqual(g.Past, want) || g.Waiting != 1 || g.Unread != 0 {
			t.Errorf("%s: %d wait, %d unread\n got %+v\nwant %+v", name, g.Waiting, g.Unread, g.Past, want)
		}
	}
	g, err := Sqlgrey(strings.NewReader("INSERT INTO from_awl VALUES('a','b');\nINSERT INTO from_awl VALUES('a','b.example','nowhere','1','2');\n"), zone)
	if err != nil || g.Unread != 2 || g.First == nil || g.First.Error() != "line 1: from_awl: 2 values for 5 columns" {
		t.Errorf("%+v, %v", g, err)
	}
	for in, want := range map[string]string{
		"INSERT INTO from_awl VALUES('a','b'\n": "the dump ends within a statement",
		"INSERT INTO from_awl VALUES x;\n":      "line 1: unexpected 'x' in a list of values",
		"COPY from_awl (a) FROM stdin;\nb\n":    `the dump ends within a COPY, without \.`,
		"COPY from_awl FROM stdin;\nb\n":        "line 1: a COPY without columns",
	} {
		if _, err := Sqlgrey(strings.NewReader(in), zone); err == nil || err.Error() != want {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestMilterGreylist(t *testing.T) {
	in := "#\n# milter-greylist database, dumped at 2026-11-27\n\n# Greylisted tuples\n192.0.2.1\t<a@example.org>\t<b@example.com>\t1700000000 # 2023\n" +
		"# Auto-whitelisted tuples\n192.0.2.2\t<a@example.org>\t<b@example.com>\t1700000500 AUTO # 2023\n" +
		"2001:db8::1     c@example.org  <b@example.com>    1700000501 AUTO\n192.0.2.3\t<o@example.org>\t<b@example.com>\t1600000000 AUTO\nnothing\nx <a> <b> 1700000000 AUTO\n"
	now := at(1700000100)
	g, err := MilterGreylist(strings.NewReader(in), now)
	want := []Pass{
		{Time: now, Client: netip.MustParseAddr("192.0.2.2"), Sender: "a@example.org", Recipient: "b@example.com"},
		{Time: now, Client: netip.MustParseAddr("2001:db8::1"), Sender: "c@example.org", Recipient: "b@example.com"},
	}
	if err != nil || !reflect.DeepEqual(g.Past, want) || g.Waiting != 1 || g.Unread != 2 || !strings.HasPrefix(g.First.Error(), "line 10: ") {
		t.Errorf("%+v, %v", g, err)
	}
}

func TestVerify(t *testing.T) {
	in := "a@example.org\t0:1700000000:1700000001:250 2.1.5 Ok: fine\n_LAST_CACHE_CLEANUP_COMPLETED_\t1700000000\n" +
		"b@example.org\t2:1700000000:1700000002:550 5.1.1 no\nc@example.org\t1:1700000000:1700000002:451 x\nd@example.org\t3:1700000000:0:probe\ne@example.org\t0:1700000000:0:\nnonsense\n\n"
	v, err := Verify(strings.NewReader(in))
	want := []Result{
		{Address: "a@example.org", Known: true, At: at(1700000001), Text: "250 2.1.5 Ok: fine"},
		{Address: "b@example.org", At: at(1700000002), Text: "550 5.1.1 no"},
	}
	if err != nil || !reflect.DeepEqual(v.Results, want) || v.Open != 3 || v.Unread != 1 || v.First.Error() != `line 7: "nonsense" is no line of postmap -s` {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestPostwhite(t *testing.T) {
	n, err := Postwhite(strings.NewReader("# comment\n192.0.2.0/24\tpermit\n2001:db8::/32 PERMIT\n198.51.100.1 permit\n203.0.113.0/24 reject\n"))
	want := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32"), netip.MustParsePrefix("198.51.100.1/32")}
	if err != nil || !reflect.DeepEqual(n.Permitted, want) || len(n.Left) != 1 || n.Left[0] != "line 5: 203.0.113.0/24 reject" {
		t.Errorf("%+v, %v", n, err)
	}
	for in, want := range map[string]string{
		"x permit":              `line 1: "x" is no network`,
		"\n192.0.2.1/24 permit": `line 2: "192.0.2.1/24" has bits beyond its mask`,
	} {
		if _, err := Postwhite(strings.NewReader(in)); err == nil || err.Error() != want {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestLongLine(t *testing.T) {
	err := scanLines(strings.NewReader("a\n"+strings.Repeat("x", maxLine+1)), func(int, string) error { return nil })
	if err == nil || !strings.HasPrefix(err.Error(), "line 2: longer than") {
		t.Error(err)
	}
}

// zone is a DNS of three clients.
type zone struct{}

func (zone) LookupAddr(_ context.Context, addr string) ([]string, error) {
	switch addr {
	case "192.0.2.1":
		return []string{"forged.example.", "mail.example.org."}, nil
	case "192.0.2.2":
		return []string{"forged.example."}, nil
	}
	return nil, &net.DNSError{IsNotFound: true}
}

func (zone) LookupIPAddr(_ context.Context, host string) ([]net.IPAddr, error) {
	if host == "mail.example.org." {
		return []net.IPAddr{{IP: net.ParseIP("2001:db8::1")}, {IP: net.ParseIP("192.0.2.1")}}, nil
	}
	return []net.IPAddr{{IP: net.ParseIP("203.0.113.1")}}, nil
}

func TestNames(t *testing.T) {
	past := []Pass{
		{Client: netip.MustParseAddr("192.0.2.1")}, {Client: netip.MustParseAddr("192.0.2.2")}, {Client: netip.MustParseAddr("192.0.2.1")},
		{Client: netip.MustParseAddr("192.0.2.3")}, {Client: netip.MustParseAddr("192.0.2.4"), Name: "mine.example"},
	}
	asked := make(chan bool, 10)
	n := Names(t.Context(), zone{}, past, func() { asked <- true })
	if n != 1 || len(asked) != 3 {
		t.Errorf("%d named, %d asked about", n, len(asked))
	}
	for i, want := range []string{"mail.example.org", "", "mail.example.org", "", "mine.example"} {
		if past[i].Name != want {
			t.Errorf("%d: %q, want %q", i, past[i].Name, want)
		}
	}
}

func FuzzReaders(f *testing.F) {
	f.Add(dump("192.0.2.0/a@b/c@d", "1700000000,1700000300"))
	f.Add("INSERT INTO from_awl VALUES('a','b.example','192.0.2','2026-10-01 09:00:00','2026-11-02 10:00:00');\n")
	f.Add("192.0.2.2\t<a@example.org>\t<b@example.com>\t1700000500 AUTO\n")
	f.Add("a@example.org\t0:1700000000:1700000001:250 Ok\n")
	f.Add("192.0.2.0/24 permit\n")
	f.Fuzz(func(t *testing.T, in string) {
		now := at(1700000400)
		for _, read := range []func() (*Greylisted, error){
			func() (*Greylisted, error) { return Postgrey(strings.NewReader(in), strings.NewReader(in), 300) },
			func() (*Greylisted, error) { return Sqlgrey(strings.NewReader(in), time.UTC) },
			func() (*Greylisted, error) { return MilterGreylist(strings.NewReader(in), now) },
		} {
			g, err := read()
			if err != nil {
				continue
			}
			if (g.Unread > 0) != (g.First != nil) {
				t.Errorf("%d unread, the first: %v", g.Unread, g.First)
			}
			for _, p := range g.Past {
				if !p.Client.IsValid() || p.Client.Is4In6() || p.Time.IsZero() {
					t.Errorf("%+v", p)
				}
			}
		}
		if v, err := Verify(strings.NewReader(in)); err == nil {
			for _, r := range v.Results {
				if r.Address == "" || r.At.IsZero() {
					t.Errorf("%+v", r)
				}
			}
		}
		if n, err := Postwhite(strings.NewReader(in)); err == nil {
			for _, p := range n.Permitted {
				if !p.IsValid() {
					t.Errorf("%v", p)
				}
			}
		}
	})
}
