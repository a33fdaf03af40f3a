package list

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/policy"
)

var now = time.Date(2030, 6, 15, 12, 0, 0, 0, time.Local)

// request makes a request at RCPT: client, name, helo, sender, recipient.
func request(client, name, helo, sender, rcpt string) *policy.Request {
	req := &policy.Request{
		Time: now, Stage: policy.StageRcpt, Helo: helo,
		Client: policy.Client{Name: name}, Sender: mailaddr.Parse(sender), Recipient: mailaddr.Parse(rcpt),
	}
	if client != "" {
		req.Client.Addr = netip.MustParseAddr(client)
	}
	return req
}

func load(t *testing.T, opts Options, sources ...string) *Set {
	t.Helper()
	s, faults := Load(sources, opts)
	if err := faults.Err(); err != nil {
		t.Fatal(err)
	}
	return s
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestPatterns(t *testing.T) {
	typical := request("192.0.2.7", "mail.example.org", "helo.example.net", "Ann+news@Example.ORG", "bob+x@example.com")
	v6 := request("2001:db8::7", "", "[192.0.2.1]", "", "postmaster")
	for _, tt := range []struct {
		pattern     string
		first, last bool // whether it matches typical, v6
	}{
		{"192.0.2.7", true, false},
		{"192.0.2.8", false, false},
		{"192.0.2.0/24", true, false},
		{"192.0.2", true, false},
		{"192.0.2.", true, false},
		{"192.0", true, false},
		{"192", true, false},
		{"10.2", false, false},
		{"192.0.2.5-192.0.2.7", true, false},
		{"192.0.2.5-9", true, false},
		{"192.0.2.8-9", false, false},
		{"0.0.0.0/0", true, false},
		{"::ffff:192.0.2.7", true, false},
		{"2001:db8::/32", false, true},
		{"2001:db8::7", false, true},
		{"2001:db8::-2001:db8::ff", false, true},
		{"[2001:db8::7]", false, true},
		{"mail.example.org", true, false},
		{"client:MAIL.Example.ORG.", true, false},
		{"example.org", false, false},
		{".example.org", true, false},
		{".mail.example.org", true, false},
		{".org", true, false},
		{"unknown", false, true},
		{`/^mail\.EXAMPLE/`, true, false},
		{`/^mail\.EXAMPLE/i`, false, false}, // as in pcre_table(5), i makes case count
		{`/^2001:db8:/`, false, true},
		{"helo:helo.example.net", true, false},
		{"helo:.example.net", true, false},
		{"helo:[192.0.2.1]", false, true},
		{`helo:/^\[/`, false, true},
		{"from:ann+news@example.org", true, false},
		{"from:ann@example.org", true, false},
		{"from:<ann@example.org>", true, false},
		{"from:ann@", true, false},
		{"from:example.org", true, false},
		{"from:@example.org", true, false},
		{"from:.org", true, false},
		{"from:.ple.org", false, false},
		{"from:mail.example.org", false, false},
		{"from:<>", false, true},
		{"sender:/news@/", true, false},
		{"from:/^<>$/", false, true},
		{"to:bob@example.com", true, false},
		{"to:postmaster@", false, true},
		{"recipient:postmaster@example.org", false, false},
		{"to:example.com", true, false},
		{"to:EXAMPLE.com", true, false},
		{`to:/a b/`, false, false},
		{`from:"Ann+news"@example.org`, true, false},
		{`from:"a b"@example.org`, false, false},
		{"from:@org", false, false},
		{"0.0.0.0-255.255.255.255", true, false},
		{"192.0.2.7/32", true, false},
		{"255.255", false, false},
		{"helo:/^$/", false, false},
	} {
		s := load(t, Options{Delimiters: "+"}, "inline:"+tt.pattern)
		if got := s.Find(typical) != nil; got != tt.first {
			t.Errorf("%s matches the first request: %v", tt.pattern, got)
		}
		if got := s.Find(v6) != nil; got != tt.last {
			t.Errorf("%s matches the second request: %v", tt.pattern, got)
		}
	}
}

func TestAddressesAsTheyAreWritten(t *testing.T) {
	for _, tt := range []struct {
		pattern, sender string
		want            bool
	}{
		{`from:"a\"b c"@example.org`, `a"b c@example.org`, true},
		{`from:"a\\b"@example.org`, `a\b@example.org`, true},
		{`from:"a\"@example.org`, `a\@example.org`, true},
		{`from:""@example.org`, "@example.org", true},
		{`from:a"@example.org`, `a"@example.org`, true},
		{`from:"a@example.org`, `"a@example.org`, true},
		{"from:a@[192.0.2.1]", "a@[192.0.2.1]", true},
		{"from:a@[192.0.2.1]", "a@192.0.2.1", false},
		{"from:@[IPv6:2001:db8::1]", "a@[IPv6:2001:db8::1]", true},
		{"from:az09-_.example.org", "a@az09-_.example.org", true},
		{"from:ann@example.org", "Ann@example.org", true},
		{"from:ann@example.org", "ann@EXAMPLE.org", true},
		{"from:ann@example.org", "ann@example.org.", true},
		{"from:ann@example.org", "bob@example.org", false},
		{"from:ann@", "ann+x@example.org", true},
		{"from:ann@", "+ann@example.org", false},
		{"from:" + strings.Repeat("a", 63) + ".example", "a@" + strings.Repeat("a", 63) + ".example", true},
		{"from:" + strings.Repeat("abc.", 61) + "example.a", "a@" + strings.Repeat("abc.", 61) + "example.a", true}, // 253 bytes
	} {
		s := load(t, Options{Delimiters: "+"}, "inline:"+tt.pattern)
		if got := s.Find(request("", "", "", tt.sender, "")) != nil; got != tt.want {
			t.Errorf("%s matches %s: %v", tt.pattern, tt.sender, got)
		}
	}
}

func TestIDNAIsComparedAsALabels(t *testing.T) {
	s := load(t, Options{}, "inline:from:bücher.example")
	for _, sender := range []string{"a@bücher.example", "a@xn--bcher-kva.example", "a@BÜCHER.example"} {
		if s.Find(request("", "", "", sender, "")) == nil {
			t.Errorf("%s is not found", sender)
		}
	}
}

func TestWhatIsNotKnownDoesNotMatch(t *testing.T) {
	s := load(t, Options{}, "inline:from:<>", "inline:helo:/./", "inline:to:/./", "inline:/./")
	if e := s.Find(&policy.Request{Time: now, Stage: policy.StageConnect}); e != nil {
		t.Errorf("at connect, without a client: %s", e.Pattern)
	}
	if e := s.Find(&policy.Request{Time: now, Stage: policy.StageMail}); e == nil || e.Pattern != "from:<>" {
		t.Errorf("at MAIL FROM:<>: %v", e)
	}
	if e := s.Find(&policy.Request{Time: now, Stage: policy.StageVrfy}); e != nil {
		t.Errorf("at VRFY, without a sender: %s", e.Pattern)
	}
	s = load(t, Options{}, "inline:helo:/^/", "inline:to:/^/", "inline:/^/", "inline:from:/./")
	if e := s.Find(&policy.Request{Time: now, Stage: policy.StageRcpt, Sender: mailaddr.Parse("")}); e == nil || e.Field != Sender {
		t.Errorf("without anything but <>: %v", e)
	}
}

// What a table is looked up by, and when that is known.
func TestTablesByField(t *testing.T) {
	path := write(t, "t", "/^/ REJECT\n")
	client := request("192.0.2.7", "", "", "", "")
	client.Stage = policy.StageConnect
	name := request("", "mx.example.org", "", "", "")
	name.Stage = policy.StageConnect
	helo := request("", "", "mx.example.org", "", "")
	helo.Stage = policy.StageHelo
	bounce := request("", "", "", "", "")
	bounce.Stage = policy.StageMail
	sender := request("", "", "", "a@example.org", "")
	sender.Stage = policy.StageMail
	vrfy := request("", "", "", "", "bob")
	vrfy.Stage = policy.StageVrfy
	for _, tt := range []struct {
		name string
		req  *policy.Request
		want string
	}{
		{"an address", client, "client"}, {"a name", name, "client"}, {"HELO", helo, "helo"},
		{"<>", bounce, "sender"}, {"a sender", sender, "sender"}, {"VRFY", vrfy, "recipient"},
	} {
		for _, field := range fieldNames {
			s := load(t, Options{NeedAction: true, Actions: []policy.Action{policy.Reject}}, field+"=regexp:"+path)
			if got := s.Find(tt.req) != nil; got != (field == tt.want) {
				t.Errorf("%s is found by %s: %v", tt.name, field, got)
			}
		}
	}
}

func TestTheMostSpecificDecides(t *testing.T) {
	ordered := []string{ // each goes before all below it
		"from:ann@example.org",
		"192.0.2.7",
		"192.0.2.0/28",
		"192.0.2.0/24",
		"mail.example.org",
		"from:example.org",
		"from:ann@",
		".mail.example.org",
		".example.org",
		".org",
		"unknown",
		"/example/",
	}
	req := request("192.0.2.7", "mail.example.org", "", "ann@example.org", "")
	for i := range ordered {
		if ordered[i] == "unknown" {
			continue
		}
		var sources []string
		for j := len(ordered) - 1; j >= i; j-- {
			sources = append(sources, "inline:"+ordered[j])
		}
		if e := load(t, Options{}, sources...).Find(req); e == nil || e.Pattern != ordered[i] {
			t.Errorf("of %v: %+v", ordered[i:], e)
		}
	}
	// Across fields and kinds of sources.
	dir := t.TempDir()
	file := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	opts := Options{NeedAction: true, Actions: []policy.Action{policy.Allow, policy.Reject}}
	cidr := "cidr:" + file("cidr", "192.0.2.0/24 OK\n")
	hash := "texthash:" + file("hash", "192.0.2 OK\nmail.a.b.c.d.example.org OK\n!! OK\n")
	many := request("192.0.2.7", "mail.a.b.c.d.example.org", "[192.0.2.7]", "ann@example.org", "bob@example.com")
	none := request("192.0.2.7", "", "", "ann@example.org", "bob@example.com")
	v6 := request("2001:db8::7", "", "", "ann@example.org", "bob@example.com")
	for _, tt := range []struct {
		req     *policy.Request
		winner  string
		sources []string
	}{
		{many, "helo:[192.0.2.7]", []string{"inline:mail.a.b.c.d.example.org ok", "inline:helo:[192.0.2.7] ok"}},
		{many, "mail.a.b.c.d.example.org", []string{"inline:from:example.org ok", "inline:.b.c.d.example.org ok", hash}},
		{many, "mail.a.b.c.d.example.org", []string{hash, "inline:mail.a.b.c.d.example.org ok"}}, // the first of two alike
		{none, "from:example.org", []string{"inline:unknown ok", "inline:from:example.org ok"}},
		{none, "192.0.2.0/24", []string{"inline:192.0.0.0/16 reject", cidr}},
		{none, "192.0.2.0/28", []string{cidr, "inline:192.0.2.0/28 reject"}},
		{none, "192.0.2", []string{"inline:192.0.0.0/16 reject", hash}},
		{none, "192.0.2.0/28", []string{hash, "inline:192.0.2.0/28 reject"}},
		{none, "from:ann@example.org", []string{"inline:from:ann@example.org ok", "inline:to:bob@example.com reject"}},
		{none, "to:bob@example.com", []string{"inline:to:bob@example.com reject", "inline:from:ann@example.org ok"}},
		{v6, "2001:db8::/120", []string{"inline:2001:db8::/112 reject", "inline:2001:db8::/120 ok", "inline:0.0.0.0/0 ok"}},
	} {
		if e := load(t, opts, tt.sources...).Find(tt.req); e == nil || e.Pattern != tt.winner {
			t.Errorf("%v: %+v, want %s", tt.sources, e, tt.winner)
		}
	}
	two := load(t, Options{}, "inline:192.0.2.7 owner=first", "inline:192.0.2.7 owner=second")
	if e := two.Find(req); e.Owner != "first" {
		t.Errorf("of two that are the same: %s", e.Owner)
	}
}

func TestExpiredEntriesDoNotMatch(t *testing.T) {
	s := load(t, Options{},
		"inline:192.0.2.7 until=2030-06-14 owner=over",
		"inline:192.0.2.0/24 until=2030-06-15T11:59 owner=over",
		"inline:192.0.0.0/16 until=2030-06-15 owner=today",
		"inline:.example.org until=2030-06-01",
		"inline:.example.org owner=second")
	if e := s.Find(request("192.0.2.7", "", "", "", "")); e == nil || e.Owner != "today" {
		t.Errorf("the entry in force is not found: %+v", e)
	}
	if e := s.Find(request("", "a.example.org", "", "", "")); e == nil || e.Owner != "second" {
		t.Errorf("the second entry of the same pattern: %+v", e)
	}
	late := request("192.0.2.7", "", "", "", "")
	late.Time = time.Date(2030, 6, 16, 0, 0, 0, 0, time.Local)
	if e := s.Find(late); e != nil {
		t.Errorf("the day after: %+v", e)
	}
}

// A range is several networks, each with entries of others behind it.
func TestExpiredRanges(t *testing.T) {
	s := load(t, Options{}, "inline:192.0.2.7-192.0.2.10 until=2030-06-01", "inline:192.0.2.10 owner=ten", "inline:192.0.2.8/31 owner=eight", "inline:192.0.2.7 owner=seven")
	for client, want := range map[string]string{"192.0.2.7": "seven", "192.0.2.8": "eight", "192.0.2.10": "ten"} {
		if e := s.Find(request(client, "", "", "", "")); e == nil || e.Owner != want {
			t.Errorf("%s: %+v", client, e)
		}
	}
	if e := s.Find(request("192.0.2.11", "", "", "", "")); e != nil {
		t.Errorf("beyond the range: %+v", e)
	}
}

func TestActions(t *testing.T) {
	all := []policy.Action{
		policy.Allow, policy.Permit, policy.Reject, policy.Defer, policy.DeferIfPermit, policy.Hold, policy.Discard, policy.Redirect,
	}
	opts := Options{Key: "k", NeedAction: true, Actions: all, Vars: []string{"client"}}
	req := request("192.0.2.7", "", "", "", "")
	for _, tt := range []struct {
		text   string
		action policy.Action
		reply  string
	}{
		{"allow", policy.Allow, ""},
		{"OK", policy.Allow, ""},
		{"permit", policy.Permit, ""},
		{"reject", policy.Reject, ""},
		{"REJECT owner=me no mail from {client}", policy.Reject, "554 5.7.1 no mail from V"},
		{"reject 550 5.7.0 go away", policy.Reject, "550 5.7.0 go away"},
		{"550 go away", policy.Reject, "550 5.7.1 go away"},
		{"450 4.7.9 later", policy.Defer, "450 4.7.9 later"},
		{"defer until=2031-01-01 later", policy.Defer, "450 4.7.1 later"},
		{"defer_if_permit later", policy.DeferIfPermit, "450 4.7.1 later"},
		{"hold", policy.Hold, ""},
		{"discard", policy.Discard, ""},
		{"redirect a@example.org", policy.Redirect, ""},
		{"prepend X-Name: value", policy.Continue, ""},
		{"dunno", policy.Continue, ""},
		{`reject see ticket \#12 # remark`, policy.Reject, "554 5.7.1 see ticket #12"},
	} {
		s := load(t, opts, "inline:192.0.2.7 "+tt.text)
		e := s.Find(req)
		if e.Action != tt.action {
			t.Errorf("%s: %v", tt.text, e.Action)
		}
		got := ""
		if e.Reply != nil {
			got = e.Reply.Expand(func(string) string { return "V" }).String()
		}
		if got != tt.reply {
			t.Errorf("%s: reply %q", tt.text, got)
		}
	}
	for in, want := range map[string]policy.Header{
		"X-Spam-ID: 7":                  {Name: "X-Spam-ID", Value: "7"},
		"x-spam-id: 7":                  {Name: "X-Spam-Id", Value: "7"},
		"!~: \t a:b \\# c":              {Name: "!~", Value: "a:b # c"},
		"until=2031-01-01 X-Until: yes": {Name: "X-Until", Value: "yes"},
	} {
		if e := load(t, opts, "inline:192.0.2.7 prepend "+in).Find(req); e.Header != want {
			t.Errorf("prepend %s: %+v", in, e.Header)
		}
	}
	// What looks like a key and is none begins the text.
	for _, text := range []string{"=x y", "{{=1", "`=1", "Ab=c", "a-b=c", "a b=c", "a # b=c"} {
		want, _, _ := strings.Cut(text, " #")
		if e := load(t, opts, "inline:192.0.2.7 reject owner=ann "+text).Find(req); e.Text != want || e.Owner != "ann" {
			t.Errorf("reject %s: text %q", text, e.Text)
		}
	}
	for text, want := range map[string]string{"a#b": "a#b", "a# b": "a# b", "a\t#b": "a", "a #": "a", "a \\#b": "a #b"} {
		if e := load(t, opts, "inline:192.0.2.7 reject "+text).Find(req); e.Text != want {
			t.Errorf("reject %s: text %q, want %q", text, e.Text, want)
		}
	}
	e := load(t, opts, "inline:192.0.2.7 redirect a@example.org").Find(req)
	if e.Arg != "a@example.org" {
		t.Errorf("redirect to %q", e.Arg)
	}
	e = load(t, opts, "inline:192.0.2.7 prepend X-Spam-ID: 7 of 9").Find(req)
	if e.Header != (policy.Header{Name: "X-Spam-ID", Value: "7 of 9"}) {
		t.Errorf("prepend %+v", e.Header)
	}
}

func TestFaultsHaveAPlace(t *testing.T) {
	opts := Options{
		Key: "k", Default: policy.Reject, Actions: []policy.Action{policy.Reject, policy.Defer}, Vars: []string{"client"},
		Params: map[string]func(string) error{"skip": func(string) error { return errors.New("not that") }},
	}
	for _, tt := range []struct{ line, want string }{
		{"192.0.2.300", `:1:1: "192.0.2.300" is not an IPv4 address or the beginning of one`},
		{"192.0.2.0/33", `:1:1: "192.0.2.0/33" is not a network: "33" is not a prefix length from 0 to 32`},
		{"  192.0.2.7/24", `:1:3: "192.0.2.7/24" has bits set behind its prefix length: the network is 192.0.2.0/24, the address alone 192.0.2.7`},
		{"2001:db8::g", `is not an IPv6 address or network`},
		{"192.0.2.9-192.0.2.1", "192.0.2.9 comes after 192.0.2.1"},
		{"192.0.2.9-2001:db8::", "one end is IPv4"},
		{"192.0.2.9-300", `"300" is not an IP address`},
		{"192.0.2.", ""},
		{"1.2.3.4.5", "is not an IPv4 address or the beginning of one"},
		{"*.example.org", "there are no wildcards"},
		{"exa mple.org", ""}, // two words: the second is the text
		{"example..org", "a label is empty"},
		{"exämple.org", ""},
		{"from:", "nothing behind the prefix"},
		{"to:postmaster", `"postmaster" has no dot`},
		{"to:<>", "<> is a sender"},
		{"form:a@example.org", `":" cannot stand in it`},
		{"/a(b/", ":1:1: "},
		{"/ab", ":1:1: the regular expression has no closing /"},
		{`/ab\`, ":1:1: the regular expression has no closing /"},
		{`helo:/ab\/ x`, ":1:1: the regular expression has no closing /"},
		{"helo:[192.0.2.1", "cannot stand in it"},
		{"helo:192.0.2.1]", "cannot stand in it"},
		{"from:a@[192.0.2.1", "cannot stand in it"},
		{"from:a@192.0.2.1]", "cannot stand in it"},
		{"from: a@example.org", "nothing behind the prefix"},
		{"from:a@.", "is not a host name"},
		{"a`.example", "cannot stand in it"},
		{"a{.example", "cannot stand in it"},
		{"a/.example", "is not an IP address"},
		{"a:.example", "cannot stand in it"},
		{strings.Repeat("a", 64) + ".example", "longer than 63"},
		{strings.Repeat("abc.", 61) + "example.aa", "is not a host name"}, // 254 bytes
		{"192.0.2/24", `"192.0.2" is not an IP address`},
		{"192.0.2.7/-1", "is not a prefix length"},
		{"192.0.2.7/+32", "is not a prefix length"},
		{"192.0.2.7/x", "is not a prefix length"},
		{"192.0.2.7/", "is not a prefix length"},
		{"fe80::1%eth0", "is not an IPv6 address"},
		{"g::1", "is not an IPv6 address"},
		{"192.256", "is not an IPv4 address"},
		{"192.00", "is not an IPv4 address"},
		{"192.0.2.7 reject  {clinet}", ":1:19: unknown placeholder"},
		{"192.0.2.7 reject owner=ann\t{clinet}", ":1:28: unknown placeholder"},
		{"192.0.2.7 a=b", `unknown key "a"`},
		{"192.0.2.7 z_=b", `unknown key "z_"`},
		{"192.0.2.7 allow", ":1:11: allow cannot stand in k (one of defer, dunno, reject)"},
		{"192.0.2.7 until=yesterday x", ":1:11: until=yesterday is not a date"},
		{"192.0.2.7 untill=2030-01-01 x", `:1:11: unknown key "untill" (one of owner, skip, until)`},
		{"192.0.2.7 owner= x", "owner= has no value"},
		{"192.0.2.7 skip=rbl", "skip: not that"},
		{"192.0.2.7 550", "the code 550 has no text"},
		{"192.0.2.7 reject {clinet}", "unknown placeholder {clinet}"},
		{"192.0.2.7 reject 450 later", "must be 5xx"},
		{"192.0.2.7 warn x", "something that only Postfix can do"},
		{"192.0.2.7 größe", "only printable ASCII"},
		{"\xff", ":1:1: not UTF-8"},
		{"a\x00b", ":1:2: a zero byte"},
		{strings.Repeat("x", maxLine+1), "at most 65536"},
	} {
		path := write(t, "bad.list", tt.line+"\n")
		_, faults := Load([]string{path}, opts)
		switch {
		case tt.want == "":
			if len(faults) > 0 {
				t.Errorf("%q: %v", tt.line, faults)
			}
		case len(faults) != 1 || faults[0].File != path || !strings.Contains(strings.ReplaceAll(faults.Error(), path, ""), tt.want):
			t.Errorf("%q: faults %q, want one with %q", tt.line, faults, tt.want)
		}
	}
}

func TestFaultsOfActions(t *testing.T) {
	all := []policy.Action{policy.Allow, policy.Reject, policy.Redirect}
	for _, tt := range []struct {
		opts       Options
		line, want string
	}{
		{Options{NeedAction: true, Actions: all}, "192.0.2.7 nonsense", `:1:11: "nonsense" is not an action`},
		{Options{NeedAction: true, Actions: all}, "192.0.2.7 redirect", ":1:19: redirect needs one address"},
		{Options{NeedAction: true, Actions: all}, "192.0.2.7 redirect a@b c", ":1:20: redirect needs one address"},
		{Options{NeedAction: true, Actions: all}, "192.0.2.7 prepend X-Name", ":1:19: prepend needs a header field"},
		{Options{NeedAction: true, Actions: all}, "192.0.2.7 prepend X-Name: ", ":1:19: prepend needs a header field"},
		{Options{NeedAction: true, Actions: all}, "192.0.2.7 prepend : value", ":1:19: prepend needs a header field"},
		{Options{NeedAction: true, Actions: all}, "192.0.2.7 prepend X Name: value", ":1:19: prepend needs a header field"},
		{Options{NeedAction: true, Actions: all}, "192.0.2.7 prepend \x01X: value", ":1:19: prepend needs a header field"},
		{Options{NeedAction: true, Actions: all}, "192.0.2.7 prepend X\x7f: value", ":1:19: prepend needs a header field"},
		{Options{NeedAction: true, Actions: all}, "192.0.2.7 prepend X-Name: v\u00e4lue", ":1:26: a header field holds printable ASCII only"},
		{Options{Key: "k"}, "192.0.2.7 reject", ":1:11: reject cannot stand in k (one of allow, dunno)"},
		{Options{Key: "k"}, "192.0.2.7 allow", ""},
		{Options{Key: "k", Default: policy.Reject}, "192.0.2.7 allow", ":1:11: allow cannot stand in k (one of dunno, reject)"},
		{Options{Key: "k", Default: policy.Reject}, "192.0.2.7 reject", ""},
		{Options{Key: "k"}, "192.0.2.7 prepend X-Name: value", "cannot stand in k"},
	} {
		path := write(t, "bad.list", tt.line+"\n")
		_, faults := Load([]string{path}, tt.opts)
		if got := strings.ReplaceAll(faults.Error(), path, ""); (got == "") != (tt.want == "") || !strings.Contains(got, tt.want) {
			t.Errorf("%q: %q, want %q", tt.line, got, tt.want)
		}
	}
	takes := func(string) error { return nil }
	s := load(t, Options{Params: map[string]func(string) error{"skip": takes, "delay": takes}}, "inline:192.0.2.7 skip=rbl delay=5m text")
	if e := s.Entries()[0]; e.Params["skip"] != "rbl" || e.Params["delay"] != "5m" || e.Text != "text" {
		t.Errorf("%+v", e)
	}
	// A table's result has an action, whatever the list does without one.
	_, faults := Load([]string{"cidr:" + write(t, "c", "192.0.2.7 something\n")}, Options{})
	if !strings.Contains(faults.Error(), `"something" is not an action`) {
		t.Error(faults)
	}
}

func TestSources(t *testing.T) {
	odd := write(t, "a:b", "\ufeff\n  # a remark\n\n \t\r\n192.0.2.7\n")
	for _, source := range []string{odd, "file:" + odd, "client=" + odd} {
		if s := load(t, Options{}, source); s.Len() != 1 || s.Entries()[0].Line != 5 {
			t.Errorf("%s: %d entries, %+v", source, s.Len(), s.Entries())
		}
	}
	long := "192.0.2.7" + strings.Repeat(" ", maxLine-len("192.0.2.7 x")) + " #" // as long as a line may be
	load(t, Options{}, write(t, "long", long))
	big := write(t, "big", "")
	if err := os.Truncate(big, maxFile+1); err != nil { // takes no room
		t.Fatal(err)
	}
	list, table := write(t, "list", "192.0.2.7\n"), write(t, "table", strings.Repeat("192.0.2.7 nonsense\n", 3*maxFaults))
	bad := write(t, "bad", strings.Repeat("192.0.2.300 OK\n", 3*maxFaults))
	for _, tt := range []struct {
		source string
		opts   Options
		want   string
		n      int
	}{
		{"sender=postgrey-clients:" + list, Options{}, "postgrey-clients says by itself", 1},
		{"sender=postgrey-recipients:" + list, Options{}, "postgrey-recipients says by itself", 1},
		{"cidr:", Options{}, "the name of the file is missing", 1},
		{"inline:# only a remark", Options{Key: "k"}, `k[0]: there is no entry in "inline:# only a remark"`, 1},
		{"inline:", Options{KeyAt: func(i int) string { return "at" + itoa(i) }}, "at0: there is no entry", 1},
		{"inline:*.x", Options{Key: "k"}, "k[0]: \"*.x\": there are no wildcards", 1},
		{"relative.list", Options{Key: "k"}, "k[0]: relative.list cannot be read: no such file", 1},
		{big, Options{}, "at most 268435456 can be read", 1},
		{"cidr:" + big, Options{}, "at most 268435456 can be read", 1},
		{"postgrey-clients:" + write(t, "p", "# x\n   *.x # y\n"), Options{}, ":2:4: \"*.x\": there are no wildcards", 1},
		{"postgrey-clients:" + list, Options{Key: "deny", Default: policy.Reject}, ":1:1: a postgrey whitelist exempts; that cannot stand in deny", 1},
		{"cidr:" + table, Options{}, "is not an action", maxFaults},
		{"cidr:" + bad, Options{}, "and more faults", maxFaults + 1},
		{write(t, "zero", "\x00192.0.2.7\n"), Options{}, ":1:1: a zero byte", 1},
		{write(t, "utf8", "\ufffd x\xff\n"), Options{}, ":1:6: not UTF-8", 1},
	} {
		_, faults := Load([]string{tt.source}, tt.opts)
		if len(faults) != tt.n || !strings.Contains(faults.Error(), tt.want) {
			t.Errorf("%s: %d faults: %v, want %q", tt.source, len(faults), faults, tt.want)
		}
	}
	just := write(t, "just", strings.Repeat("192.0.2.300 OK\n", maxFaults))
	if _, faults := Load([]string{"cidr:" + just}, Options{}); len(faults) != maxFaults || strings.Contains(faults.Error(), "more faults") {
		t.Errorf("%d faults: %v", len(faults), faults)
	}
}

func TestFieldNames(t *testing.T) {
	for f := range fieldCount {
		if s := load(t, Options{Field: f}, f.String()+"="+write(t, "l", "/x/\n")); s.Entries()[0].Field != f {
			t.Errorf("%v: %v", f, s.Entries()[0].Field)
		}
	}
	if got := fieldCount.String(); got != "unknown" {
		t.Errorf("a field beyond the last: %q", got)
	}
}

func TestPlainRequestsCostNothing(t *testing.T) {
	s := load(t, Options{Delimiters: "+"}, "inline:192.0.2.0/24", "inline:.example.net", "inline:from:bob@example.org", "inline:to:bob@")
	req := request("198.51.100.7", "mail.example.org", "mail.example.org", "ann@example.org", "dora@example.com")
	if n := testing.AllocsPerRun(100, func() { s.Find(req) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAllFaultsAtOnce(t *testing.T) {
	first := write(t, "a.list", "1.2.3.4.5\n# fine\n192.0.2.1\n*.example\n")
	second := write(t, "b.list", strings.Repeat("1.2.3.4.5\n", 100))
	_, faults := Load([]string{first, "inline:/(/", "nonsense:x", "hash:/etc/access", filepath.Join(t.TempDir(), "none"), t.TempDir(), second, "sender=cidr:/x"},
		Options{Key: "access.deny"})
	text := faults.Error()
	for _, want := range []string{
		first + ":1:1: ", first + ":4:1: ", "access.deny[1]: ", "access.deny[2]: unknown kind of list \"nonsense\"",
		"access.deny[3]: hash tables are read from their source: texthash:/etc/access",
		"access.deny[4]: ", "none cannot be read: no such file or directory", "access.deny[5]: ", "it is not a regular file",
		"and more faults after line 21", "access.deny[7]: a cidr table holds addresses of clients",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
	if len(faults) > 40 {
		t.Errorf("%d faults", len(faults))
	}
}

func TestPostgreyWhitelists(t *testing.T) {
	clients := write(t, "whitelist_clients", `# comment
# bigmail
mail.example.org    # remark
example.net
192.0.2.7
198.51.100.0/25
203.0.113
10.2
2001:db8::/32
/^mta-.*\.example\.com$/
`)
	recipients := write(t, "whitelist_recipients", `postmaster@
abuse@example.org
example.com
/^list-.*@/
`)
	s := load(t, Options{}, "postgrey-clients:"+clients, "postgrey-recipients:"+recipients)
	if s.Len() != 12 {
		t.Errorf("%d entries", s.Len())
	}
	for _, tt := range []struct {
		client, name, rcpt string
		want               bool
	}{
		{"", "mail.example.org", "", true},
		{"", "x.mail.example.org", "", true},
		{"", "example.org", "", false},
		{"", "EXAMPLE.net", "", false}, // names come in lower case
		{"", "a.b.example.net", "", true},
		{"192.0.2.7", "", "", true},
		{"192.0.2.8", "", "", false},
		{"198.51.100.127", "", "", true},
		{"203.0.113.9", "", "", true},
		{"10.2.3.4", "", "", true},
		{"2001:db8::5", "", "", true},
		{"", "mta-7.example.com", "", true},
		{"", "", "postmaster@anywhere.example", true},
		{"", "", "Postmaster+x@anywhere.example", true},
		{"", "", "abuse@example.org", true},
		{"", "", "abuse+y@example.org", true},
		{"", "", "abuse@example.net", false},
		{"", "", "any@sub.example.com", true},
		{"", "", "list-7@example.org", true},
	} {
		if got := s.Find(request(tt.client, tt.name, "", "", tt.rcpt)) != nil; got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
	_, faults := Load([]string{"postgrey-clients:" + write(t, "w", "two words\n")}, Options{})
	if !strings.Contains(faults.Error(), ":1:1: a line of a postgrey whitelist is one word") {
		t.Error(faults)
	}
}

func TestPostfixTables(t *testing.T) {
	all := []policy.Action{policy.Allow, policy.Reject, policy.Defer, policy.DeferIfPermit, policy.Hold, policy.Discard, policy.Redirect}
	opts := Options{Key: "access.tables", NeedAction: true, Actions: all, Vars: []string{"client"}}
	cidr := write(t, "c", "192.0.2.7 REJECT not {you}\n192.0.2.0/24 OK\n2001:db8::/32 451 4.3.0 later\n")
	pcre := write(t, "p", `/^(.+)@spam\.example$/ REJECT no mail from $1`+"\n/./ DUNNO\n")
	hash := write(t, "t", "example.org 1\nsub.example.org DEFER\nbad@example.org REDIRECT trap@example.org\n")
	s := load(t, opts, "cidr:"+cidr, "sender=pcre:"+pcre, "recipient=texthash:"+hash)
	for _, tt := range []struct {
		client, sender, rcpt string
		action               policy.Action
		line                 int
		reply                string
	}{
		{"192.0.2.7", "", "", policy.Reject, 1, "554 5.7.1 not {you}"},
		{"192.0.2.8", "", "", policy.Allow, 2, ""},
		{"2001:db8::1", "", "", policy.Defer, 3, "451 4.3.0 later"},
		{"", "joe{client}@spam.example", "", policy.Reject, 1, "554 5.7.1 no mail from joe{client}"},
		{"", "joe@ham.example", "", policy.Continue, 2, ""},
		{"", "", "x@example.org", policy.Allow, 1, ""},
		{"", "", "x@sub.example.org", policy.Defer, 2, ""},
		{"", "", "bad@example.org", policy.Redirect, 3, ""},
	} {
		req := request(tt.client, "", "", tt.sender, tt.rcpt)
		if tt.sender == "" {
			req.Stage = policy.StageHelo // nothing is known of the sender
		}
		e := s.Find(req)
		if e == nil || e.Action != tt.action || e.Line != tt.line {
			t.Errorf("%+v: %+v", tt, e)
			continue
		}
		if e.Reply != nil {
			if got := e.Reply.Expand(func(string) string { return "" }).String(); got != tt.reply {
				t.Errorf("%+v: reply %q", tt, got)
			}
		}
	}
	bad := write(t, "b", "192.0.2.7 FILTER smtp:x\n192.0.2.8 reject_unauth_destination\n192.0.2.9 REDIRECT x\n192.0.2.10 OK\n")
	_, faults := Load([]string{"cidr:" + bad}, opts)
	if text := faults.Error(); len(faults) != 3 || !strings.Contains(text, bad+":1: FILTER is something that only Postfix can do") ||
		!strings.Contains(text, bad+`:2: "reject_unauth_destination" is not an action`) || !strings.Contains(text, "redirect needs one address") {
		t.Errorf("faults:\n%v", faults)
	}
	_, faults = Load([]string{"cidr:" + cidr}, Options{Key: "access.allow", Actions: []policy.Action{policy.Allow}})
	if text := faults.Error(); !strings.Contains(text, "reject cannot stand in access.allow") {
		t.Errorf("a refusal in an allow list: %v", faults)
	}
}

func TestHitsAreCounted(t *testing.T) {
	s := load(t, Options{}, "inline:192.0.2.7")
	req := request("192.0.2.7", "", "", "", "")
	e := s.Match(req)
	req.DryRun = true
	s.Match(req)
	if n, last := e.Hits(); n != 1 || !last.Equal(now) {
		t.Errorf("%d hits, last %v", n, last)
	}
	if got := s.Entries()[0]; got.Place() != "[0]:1" {
		t.Errorf("place %q", got.Place())
	}
}

// Every address of a range, and no other, lies in its prefixes.
func TestRanges(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.SampledFrom([]int{4, 16}).Draw(t, "family")
		raw := func(label string) netip.Addr {
			b := make([]byte, size)
			copy(b, []byte{192, 0, 2})
			for i := size - 2; i < size; i++ {
				b[i] = rapid.Byte().Draw(t, label)
			}
			a, _ := netip.AddrFromSlice(b)
			return a
		}
		lo, hi, x := raw("lo"), raw("hi"), raw("x")
		if hi.Less(lo) {
			lo, hi = hi, lo
		}
		in := false
		prefixes := rangePrefixes(lo, hi)
		for i, p := range prefixes {
			if p.Masked() != p {
				t.Fatalf("%v has host bits", p)
			}
			if i > 0 && lastOf(prefixes[i-1]).Next() != p.Addr() {
				t.Fatalf("a gap before %v", p)
			}
			in = in || p.Contains(x)
		}
		if want := !x.Less(lo) && !hi.Less(x); in != want {
			t.Fatalf("%v in %v-%v: %v", x, lo, hi, in)
		}
		for i := 1; i < len(prefixes); i++ { // as few as can be: no two are halves of one
			a, b := prefixes[i-1], prefixes[i]
			if wider := netip.PrefixFrom(a.Addr(), a.Bits()-1); a.Bits() == b.Bits() && wider.Masked() == wider && wider.Contains(b.Addr()) {
				t.Fatalf("%v and %v are one", a, b)
			}
		}
		if prefixes[0].Addr() != lo || lastOf(prefixes[len(prefixes)-1]) != hi {
			t.Fatalf("%v-%v became %v", lo, hi, prefixes)
		}
	})
}

func FuzzLine(f *testing.F) {
	for _, s := range []string{"192.0.2.0/24 reject x", "from:<>", `/a b/i 550 5.1.1 no`, "to:a@ until=2030-01-01 owner=x", "1.2", "10.0.0.1-9", "# x", "2001:db8::/32\tok", "helo:[1]", `"`, "from:\"a b\"@example.org"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		if len(line) > 2000 || strings.ContainsAny(line, "\n\x00") {
			return
		}
		opts := Options{Key: "k", Actions: []policy.Action{policy.Allow, policy.Reject, policy.Defer}, Delimiters: "+"}
		for _, format := range []format{formatList, formatPostgreyClients, formatPostgreyRecipients} {
			var faults conf.Faults
			c := &content{}
			s := &source{format: format, file: "f"}
			s.addLine(&opts, c, &faults, line, 1)
			if len(faults) > 1 || len(faults) == 1 && (faults[0].Text == "" || faults[0].Column > len(line)+1 || len(c.entries) != 0) {
				t.Fatalf("%q: %v", line, faults)
			}
			if len(c.entries) == 0 {
				continue
			}
			set := build(&opts, []*source{s}, []*content{c})
			e := set.entries[0]
			if e.Action.Refuses() && e.Reply != nil {
				r := e.Reply.Expand(func(string) string { return "" })
				if r.Text == "" || strings.ContainsAny(r.Text, "\r\n") {
					t.Fatalf("%q: reply %q", line, r)
				}
			}
			if p := c.patterns[0]; len(p.networks) > 0 {
				req := request(p.networks[0].Addr().String(), "", "", "", "")
				if e.Until.IsZero() && set.Find(req) == nil {
					t.Fatalf("%q does not match the first address of its network", line)
				}
			}
			set.Find(request("192.0.2.1", line, line, line, line))
		}
	})
}
