package integration

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pelletier/go-toml/v2"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"postern/internal/certtest"
	"postern/internal/listen"
	"postern/lookup"
)

// tableDoor is the lookup door with its tables, as the daemon puts them
// together.
type tableDoor struct {
	t      *testing.T
	cfg    lookup.Config
	tables *lookup.Tables
	server *lookup.Server
	more   map[string]lookup.Map
}

// openTables serves tables on a unix and a tcp socket.
func openTables(t *testing.T, dir string, tables map[string]lookup.TableConfig, more map[string]lookup.Map) *tableDoor {
	t.Helper()
	cfg := lookup.DefaultConfig()
	cfg.Listen = make([]listen.Address, 2)
	for i, text := range []string{"unix:" + filepath.Join(dir, "lookup.sock"), "tcp:127.0.0.1:" + freePort(t)} {
		if err := cfg.Listen[i].UnmarshalText([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	return serveTables(t, cfg, tables, more)
}

func serveTables(t *testing.T, cfg lookup.Config, tables map[string]lookup.TableConfig, more map[string]lookup.Map) *tableDoor {
	t.Helper()
	d := &tableDoor{t: t, cfg: cfg, more: more}
	ts, faults := lookup.NewTables(tables, zaptest.NewLogger(t, zaptest.Level(zap.InfoLevel)), nil)
	if faults != nil {
		t.Fatal(faults)
	}
	d.tables = ts
	d.tables.Start(100 * time.Millisecond)
	t.Cleanup(d.tables.Stop)
	d.open()
	t.Cleanup(d.close)
	return d
}

func (d *tableDoor) open() {
	d.t.Helper()
	d.server = lookup.New(d.cfg, zap.NewNop(), prometheus.NewRegistry())
	all := d.tables.Maps()
	maps.Copy(all, d.more)
	d.server.SetMaps(all)
	if err := d.server.Configure(d.cfg, nil); err != nil {
		d.t.Fatal(err)
	}
}

// close ends the door, as at the end of a daemon.
func (d *tableDoor) close() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = d.server.Stop(ctx) // what Postfix still holds is closed then
}

func (d *tableDoor) unix(name string) string {
	return "socketmap:unix:" + d.cfg.Listen[0].Path + ":" + name
}

func (d *tableDoor) inet(name string) string {
	return "socketmap:inet:" + d.cfg.Listen[1].Target() + ":" + name
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // somebody else takes it
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// file writes a table. Postfix waits with a texthash that is new, so it is old.
func file(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	old := time.Now().Add(-time.Hour)
	if err := os.Chtimes(path, old, old); err != nil {
		t.Fatal(err)
	}
	return path
}

// edit changes a table of a running daemon as sed -i and careful editors do.
func edit(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".tmp", []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

// postmapQ asks a table with postmap(1): "" when the key is not there.
func postmapQ(t *testing.T, key, table string) (value, complaint string) {
	t.Helper()
	var out, errs strings.Builder
	cmd := exec.Command("postmap", "-q", key, table)
	cmd.Stdout, cmd.Stderr = &out, &errs
	_ = cmd.Run() // 1 when the key is not there
	return strings.TrimSuffix(out.String(), "\n"), errs.String()
}

func TestPostmapAsksTheDoor(t *testing.T) {
	t.Parallel()
	require(t, "postmap")
	dir := shortDir(t)
	long := strings.Repeat("x", 60_000)
	tls := file(t, dir, "tls", "[mail.example.org]:587 secure match=nexthop\nexample.org  encrypt\n\"a b\"@example.org x\nlong "+long+"\n")
	nets := file(t, dir, "nets", "192.0.2.0/24 REJECT four\n2001:db8::/32 REJECT six\n!0.0.0.0/1 high\n")
	patterns := file(t, dir, "patterns", "/^dyn-([0-9]+)/ REJECT $1\n/^double(.*)$/ $1$1\n/^nothing(x?)$/ $1\n")
	d := openTables(t, dir, map[string]lookup.TableConfig{
		"tls":      {Source: "texthash:" + tls, Search: lookup.SearchExact},
		"nets":     {Source: "cidr:" + nets},
		"patterns": {Source: "regexp:" + patterns},
		"all":      {Sources: []string{"cidr:" + nets, "regexp:" + patterns, "texthash:" + tls}, Search: lookup.SearchExact},
	}, nil)
	direct := map[string]string{"tls": "texthash:" + tls, "nets": "cidr:" + nets, "patterns": "regexp:" + patterns}
	for _, key := range []string{
		"[mail.example.org]:587", "example.org", "EXAMPLE.org", "sub.example.org", `"a b"@example.org`, "long", "a b", "*",
		"192.0.2.7", "198.51.100.7", "127.0.0.1", "2001:db8::1", "2001:DB8::1", "::ffff:192.0.2.7", "dyn-77.example", "DYN-7", "double,x:", "\u00fc",
	} {
		for name, table := range direct {
			want, _ := postmapQ(t, key, table)
			for _, over := range []string{d.unix(name), d.inet(name)} {
				if got, complaint := postmapQ(t, key, over); got != want || complaint != "" {
					t.Errorf("%s %q: %.100q, directly %.100q; %s", over, key, got, want, complaint)
				}
			}
		}
	}
	if got, _ := postmapQ(t, "192.0.2.7", d.inet("all")); got != "REJECT four" {
		t.Errorf("several files: %q", got)
	}
	for name, want := range map[string][2]string{
		"nosuch":   {"example.org", `socketmap server temporary error: postern has no table "nosuch"`},
		"patterns": {"nothing", `socketmap server temporary error: table "patterns" cannot answer`},
	} {
		if got, complaint := postmapQ(t, want[0], d.inet(name)); got != "" || !strings.Contains(complaint, want[1]) {
			t.Errorf("%s: %q, %s", name, got, complaint)
		}
	}
	// Too long a key. Postfix before 3.12 sends it, and the door ends that
	// connection; later ones do not ask.
	if got, complaint := postmapQ(t, strings.Repeat("y", 100_000)+strings.Repeat("z", 40_000), d.inet("tls")); got != "" ||
		complaint != "" && !strings.Contains(complaint, "query error") {
		t.Errorf("%q, %s", got, complaint)
	}
	if got, _ := postmapQ(t, "example.org", d.inet("tls")); got != "encrypt" {
		t.Errorf("after that: %q", got)
	}
}

// searched are tables as an administrator has them for Postfix itself.
var searched = map[string]string{
	"clients":    "192.0.2 REJECT net\n192.0.2.9 DUNNO\n198 REJECT wide\nexample.org REJECT org\nmail.example.org OK\nunknown DUNNO\n2001:db8 REJECT six\nnet REJECT tld\n.example.com REJECT dotted\n",
	"helos":      "example.org REJECT helo-org\nbad.example.net REJECT helo-bad\n203.0.113.1 REJECT literal\n203.0.113 REJECT numeric-parent\n",
	"senders":    "spam@ REJECT user\nspam+y@ REJECT user-ext\nann@example.org DUNNO\nann+list@example.org REJECT list\nexample.org REJECT sender-org\nexample REJECT sender-tld\n<> DUNNO\nBob@Sub.Example.NET REJECT bob\n",
	"recipients": "al@example.com REJECT al\nal+x@example.com REJECT al-x\nbo@example.com REJECT bo\ncy@ REJECT cy\n",
	"transport": "al@relay.example error:5.7.1 t-al\nbo+x@relay.example error:5.7.1 t-bo-x\nrelay.example error:5.7.1 t-domain\n.relay.example error:5.7.1 t-sub\n" +
		"sub.sub.relay.example error:5.7.1 t-subsub\n* :\n",
	"relaydomains": "relay.example x\n.dot.example x\n",
	"known":        "al@relay.example x\n@open.relay.example x\nbo@relay.example x\nrest.relay.example x\n",
}

// The same tables, once read by Postfix and once asked over the door, must
// make Postfix say the same.
func TestSearchesAsPostfixDoes(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dir := shortDir(t)
	search := map[string]lookup.Search{
		"clients": lookup.SearchAccess, "helos": lookup.SearchAccess, "senders": lookup.SearchAccess, "recipients": lookup.SearchAccess,
		"transport": lookup.SearchTransport, "relaydomains": lookup.SearchDomain, "known": lookup.SearchMailbox,
	}
	tables := map[string]lookup.TableConfig{}
	paths := map[string]string{}
	for name, text := range searched {
		paths[name] = file(t, dir, name, text)
		tables[name] = lookup.TableConfig{Source: "texthash:" + paths[name], Search: search[name], Delimiters: "+"}
	}
	d := openTables(t, dir, tables, nil)
	var instances []*postfix
	for _, table := range []func(name string) string{
		func(name string) string { return "texthash:" + paths[name] },
		d.inet,
	} {
		instances = append(instances, startPostfix(t, false,
			"recipient_delimiter = +", "in_flow_delay = 0",
			"relay_domains = "+table("relaydomains"),
			"relay_recipient_maps = "+table("known"),
			"transport_maps = "+table("transport"),
			"smtpd_client_restrictions = check_client_access "+table("clients"),
			"smtpd_helo_restrictions = check_helo_access "+table("helos"),
			"smtpd_sender_restrictions = check_sender_access "+table("senders"),
			"smtpd_recipient_restrictions = reject_unauth_destination, check_recipient_access "+table("recipients"),
		))
	}
	both := func(what string, replies func(p *postfix) []string) {
		t.Helper()
		direct, door := replies(instances[0]), replies(instances[1])
		for i := range direct {
			if direct[i] != door[i] {
				t.Errorf("%s: with a file %q, over the door %q", what, direct[i], door[i])
			}
		}
	}
	seen := map[string]bool{}
	ask := func(client, name, helo, sender string, recipients ...string) {
		t.Helper()
		both(fmt.Sprint(client, " ", name, " ", helo, " ", sender, " ", recipients), func(p *postfix) []string {
			s := p.dial(client, name)
			defer s.Close() //nolint:errcheck // it has said all
			s.cmd(250, "EHLO %s", helo)
			s.cmd(250, "MAIL FROM:<%s>", sender)
			var out []string
			for _, r := range recipients {
				reply := s.say("RCPT TO:<%s>", r)
				if m := regexp.MustCompile(`: ([^:]*)$`).FindStringSubmatch(reply); m != nil {
					seen[m[1]] = true
				}
				out = append(out, reply)
			}
			return out
		})
	}
	const good, helo, sender, rcpt = "203.0.113.77", "host.test", "x@sender.test", "zed@example.com"
	for _, client := range []string{"192.0.2.7", "192.0.2.9", "198.51.100.1", "203.0.113.5", "2001:db8::1", "2001:db9::1"} {
		for _, name := range []string{"", "mail.example.org", "a.b.example.org", "Example.ORG", "x.example.com", "example.com", "host.net", "host.test"} {
			ask(client, name, helo, sender, rcpt)
		}
	}
	for _, helo := range []string{"example.org", "a.Example.org", "bad.example.net", "x.bad.example.net", "203.0.113.1", "[203.0.113.1]", "localhost"} {
		ask(good, "", helo, sender, rcpt)
	}
	for _, sender := range []string{
		"", "spam@a.test", "spam+x@a.test", "spam+y@a.test", "ann@example.org", "ann+x@example.org", "ann+list@Example.org", "bob@sub.example.net", "x@sub.example.org",
		"x@a.b.example", `"a b"@example.org`, "x@test", "Spam+@a.test",
	} {
		ask(good, "", helo, sender, rcpt)
	}
	ask(good, "", helo, sender, "al@example.com", "al+x@example.com", "al+y@example.com", "AL+x@Example.com", "bo+z@example.com", "cy@example.com", "cy+q@example.com",
		"al@relay.example", "bo@relay.example", "bo+x@relay.example", "zed@relay.example", "any@open.relay.example", "al@sub.relay.example", "any@sub.sub.relay.example",
		"x@a.open.relay.example", "x@dot.example", "x@a.dot.example", "x@other.test", "x@RELAY.example", "x@rest.relay.example")
	for _, word := range []string{"net", "wide", "org", "six", "tld", "helo-org", "helo-bad", "user", "user-ext", "list", "sender-org", "sender-tld", "bob", "al", "al-x", "bo", "cy", "t-al", "t-bo-x", "t-sub"} {
		if !seen[word] && !seen["Access denied "+word] {
			t.Errorf("no reply shows %q: %v", word, seen)
		}
	}
}

// delivered waits until the log tells of n recipients and returns them with
// what they were at first.
func (p *postfix) delivered(n int) []string {
	p.t.Helper()
	line := regexp.MustCompile(`to=<([^>]*)>(?:, orig_to=<([^>]*)>)?,.* status=sent`)
	deadline := time.Now().Add(patience)
	for {
		var out []string
		for _, m := range line.FindAllStringSubmatch(p.log(), -1) {
			out = append(out, m[1]+" was "+m[2])
		}
		if len(out) >= n {
			return out
		}
		if time.Now().After(deadline) {
			p.t.Fatalf("%d of %d were delivered\n%s", len(out), n, p.log())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func TestAliasesOverTheDoor(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dir := shortDir(t)
	virtual := file(t, dir, "virtual", "bob@example.com robert@example.com, carol@example.com\nann+x@example.com special@example.com\nann@example.com @other.example\n"+
		"@all.example @example.com\nall.example x\n")
	tables := map[string]lookup.TableConfig{
		"virtual": {Source: "texthash:" + virtual, Search: lookup.SearchVirtual, Delimiters: "+"},
	}
	d := openTables(t, dir, tables, nil)
	var results [][]string
	for _, table := range []string{"texthash:" + virtual, d.unix("virtual")} {
		p := startPostfix(t, false, "recipient_delimiter = +", "virtual_alias_maps = "+table, "virtual_mailbox_domains = example.com, other.example",
			"smtpd_recipient_restrictions = reject_unauth_destination")
		s := p.dial("192.0.2.7", "")
		for _, to := range []string{"bob@example.com", "Bob+q@example.com", "bob+@example.com", "ann@example.com", "ann+x@example.com", "ann+y@example.com", "zed+e@all.example", "zed@example.com"} {
			rcpt, data := s.mail("x@sender.test", to)
			matches(t, to, rcpt[0]+" / "+data, `^250 .* / 250 `)
		}
		got := p.delivered(11)
		// Order is Postfix's business.
		slices.Sort(got)
		results = append(results, got)
		if reply := s.say("MAIL FROM:<x@sender.test>"); !strings.HasPrefix(reply, "250") {
			t.Fatal(reply)
		}
		matches(t, "not an alias domain", s.say("RCPT TO:<x@none.example>"), `^454 |^554 `)
	}
	if a, b := strings.Join(results[0], "\n"), strings.Join(results[1], "\n"); a != b {
		t.Errorf("with a file:\n%s\nover the door:\n%s", a, b)
	}
	if !strings.Contains(strings.Join(results[1], "\n"), "robert+q@example.com was Bob+q@example.com") {
		t.Errorf("no extension: %v", results[1])
	}
}

func TestDomainMappingDelivers(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dir := shortDir(t)
	people := file(t, dir, "people", "bob@example.com x\n")
	mapping := map[string]string{"a.example": "example.com"}
	d := openTables(t, dir, map[string]lookup.TableConfig{
		"people":  {Source: "texthash:" + people, Search: lookup.SearchMailbox, Delimiters: "+"},
		"mapping": {MapDomains: mapping, AnswerDomains: true, ExistsIn: "people"},
		"all":     {MapDomains: map[string]string{"b.example": "example.com"}, AnswerDomains: true},
	}, nil)
	p := startPostfix(t, false, "recipient_delimiter = +", "virtual_alias_maps = "+d.unix("mapping")+", "+d.inet("all"),
		"smtpd_recipient_restrictions = reject_unauth_destination", "canonical_maps = "+d.inet("all"), "canonical_classes = envelope_sender")
	s := p.dial("192.0.2.7", "")
	rcpt, data := s.mail("from@b.example", "Bob@a.example", "bob+x@a.example", "nobody@a.example", "any@b.example", "bob@sub.a.example")
	matches(t, "mapped", rcpt[0], `^250 `)
	matches(t, "mapped with extension", rcpt[1], `^250 `)
	matches(t, "who does not exist there", rcpt[2], `^550 5\.1\.1 .*User unknown in virtual alias table`)
	matches(t, "unchecked", rcpt[3], `^250 `)
	matches(t, "a sub-domain", rcpt[4], `^[45]54 .*Relay access denied`)
	matches(t, "data", data, `^250 `)
	got := strings.Join(p.delivered(3), "\n")
	for _, want := range []string{"Bob@example.com was Bob@a.example", "bob+x@example.com was bob+x@a.example", "any@example.com was any@b.example"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in\n%s", want, got)
		}
	}
	if !strings.Contains(p.log(), "from=<from@example.com>") {
		t.Error("the sender was not mapped by canonical_maps")
	}
}

// providerNets stands for the networks of providers.
type providerNets []netip.Prefix

func (n providerNets) Lookup(a netip.Addr) (string, bool) {
	for _, p := range n {
		if p.Contains(a) {
			return "OK", true
		}
	}
	return "", false
}

func TestNetworksOverTheDoor(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	nets := lookup.FromNetworks(providerNets{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")})
	d := openTables(t, shortDir(t), nil, map[string]lookup.Map{"office365": nets})
	p := startPostfix(t, false,
		"mynetworks = 203.0.113.1 "+d.inet("office365"),
		"smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination",
		"smtpd_client_restrictions = check_client_access "+d.unix("office365")+", reject_unknown_client_hostname")
	for client, want := range map[string][2]string{ // reply to relaying, to mail for us
		"192.0.2.7":    {`^250 `, `^250 `},
		"2001:db8::25": {`^250 `, `^250 `},
		"198.51.100.7": {`^450 4\.7\.25 `, `^450 4\.7\.25 `},
	} {
		s := p.dial(client, "")
		s.cmd(250, "MAIL FROM:<x@sender.test>")
		matches(t, client+" relaying", s.say("RCPT TO:<x@elsewhere.test>"), want[0])
		matches(t, client+" to us", s.say("RCPT TO:<bob@example.com>"), want[1])
	}
}

// A gateway whose transport and TLS policy tables come over the door delivers
// to a second Postfix; both tables are edited meanwhile.
func TestDeliveryByTablesOfTheDoor(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dir := shortDir(t)
	pair := certtest.New(t, "next.example.com")
	cert, key := pair.CertFile, pair.KeyFile
	next := startPostfix(t, false, "smtpd_tls_security_level = may", "smtpd_tls_cert_file = "+cert, "smtpd_tls_key_file = "+key,
		"smtpd_tls_received_header = yes", "virtual_mailbox_domains = relay.example", "smtpd_recipient_restrictions = permit")
	hop := fmt.Sprintf("[127.0.0.1]:%d", next.port)
	transport := file(t, dir, "transport", "relay.example error:5.7.1 not yet\n")
	policy := file(t, dir, "tls_policy", hop+" none\n")
	d := openTables(t, dir, map[string]lookup.TableConfig{
		"transport":  {Source: "texthash:" + transport, Search: lookup.SearchTransport},
		"tls-policy": {Source: "texthash:" + policy, Search: lookup.SearchExact},
	}, nil)
	p := startPostfix(t, true, "relay_domains = relay.example", "relay_recipient_maps =", "smtpd_recipient_restrictions = reject_unauth_destination",
		"transport_maps = "+d.inet("transport"), "smtp_tls_policy_maps = "+d.inet("tls-policy"), "smtp_tls_loglevel = 1",
		"smtp_connection_cache_on_demand = no", "minimal_backoff_time = 1s", "maximal_backoff_time = 1s", "queue_run_delay = 1s")
	s := p.dial("192.0.2.7", "")
	// smtpd keeps for its life how it has resolved an address: each time another.
	people := 0
	recipient := func() string {
		people++
		return fmt.Sprintf("bob%d@relay.example", people)
	}
	send := func(want string) {
		t.Helper()
		rcpt, data := s.mail("x@sender.test", recipient())
		matches(t, "handed in", rcpt[0]+" "+data, want)
	}
	answers := func(name, key, want string) {
		t.Helper()
		deadline := time.Now().Add(patience)
		for {
			a, err := d.server.Explain(t.Context(), name, key)
			if err == nil && a.Value == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%s %s: %+v, %v", name, key, a, err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	send(`^550 5\.7\.1 .*not yet`)

	edit(t, transport, "relay.example relay:"+hop+"\n")
	answers("transport", "x@relay.example", "relay:"+hop)
	send(`^250 .*250 `)
	message := next.messages(1)[0]
	if !strings.Contains(message, "with ESMTP id") || strings.Contains(message, "(using TLS") {
		t.Errorf("the policy says none:\n%s", message)
	}

	edit(t, policy, hop+" encrypt\n")
	answers("tls-policy", hop, "encrypt")
	send(`^250 .*250 `)
	encrypted := 0
	for _, m := range next.messages(2) {
		encrypted += strings.Count(m, "with ESMTPS id")
	}
	if encrypted != 1 {
		t.Errorf("%d of 2 messages came encrypted, want the second", encrypted)
	}

	// A broken edit changes nothing.
	edit(t, policy, hop+"\n")
	deadline := time.Now().Add(patience)
	for d.tables.Status()[0].Sources[0].Fault == "" {
		if time.Now().After(deadline) {
			t.Fatal("the broken edit was not seen")
		}
		time.Sleep(10 * time.Millisecond)
	}
	answers("tls-policy", hop, "encrypt")

	// A level that the next hop cannot meet: the mail waits, and goes when the
	// table says otherwise.
	edit(t, policy, hop+" secure match=other.example\n")
	answers("tls-policy", hop, "secure match=other.example")
	send(`^250 .*250 `)
	deadline = time.Now().Add(patience)
	for !strings.Contains(p.log(), "Server certificate not trusted") && !strings.Contains(p.log(), "Server certificate not verified") {
		if time.Now().After(deadline) {
			t.Fatalf("not deferred\n%s", p.log())
		}
		time.Sleep(20 * time.Millisecond)
	}
	edit(t, policy, hop+" may\n")
	answers("tls-policy", hop, "may")
	next.messages(3)

	// Without the door nothing is lost: the mail waits for it.
	d.close()
	reply := s.say("MAIL FROM:<x@sender.test>")
	if strings.HasPrefix(reply, "250") {
		reply = s.say("RCPT TO:<%s>", recipient())
	}
	matches(t, "without the door", reply, `^4`)
	d.open()
	deadline = time.Now().Add(patience)
	for {
		s.cmd(250, "RSET")
		rcpt, data := "", ""
		if reply := s.say("MAIL FROM:<x@sender.test>"); strings.HasPrefix(reply, "250") {
			rcpt = s.say("RCPT TO:<%s>", recipient())
		}
		if strings.HasPrefix(rcpt, "250") {
			s.cmd(354, "DATA")
			data = s.say("Subject: late\r\n\r\nhello\r\n.")
			matches(t, "data", data, `^250 `)
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("not well again: %q", rcpt)
		}
		time.Sleep(50 * time.Millisecond)
	}
	next.messages(4)
}

// The door is closed and opened again while Postfix asks without a pause.
// Nobody is refused for good meanwhile, and nobody gets past the table.
func TestDoorRestartedUnderLoad(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dir := shortDir(t)
	table := file(t, dir, "recipients", "blocked@example.com REJECT no\n")
	d := openTables(t, dir, map[string]lookup.TableConfig{"recipients": {Source: "texthash:" + table, Search: lookup.SearchAccess}}, nil)
	p := startPostfix(t, false, "in_flow_delay = 0", "smtpd_recipient_restrictions = reject_unauth_destination, check_recipient_access "+d.inet("recipients"))
	done := make(chan struct{})
	var wg sync.WaitGroup
	var mu sync.Mutex
	replies := map[string]int{}
	kind := regexp.MustCompile(`^\d+ [\d.]+`)
	for range 5 {
		s := p.dial("192.0.2.7", "")
		wg.Go(func() {
			for {
				select {
				case <-done:
					return
				default:
				}
				s.cmd(250, "MAIL FROM:<x@sender.test>")
				for _, r := range []string{"bob@example.com", "blocked@example.com"} {
					reply := s.say("RCPT TO:<%s>", r)
					mu.Lock()
					replies[r+" "+kind.FindString(reply)]++
					mu.Unlock()
				}
				s.cmd(250, "RSET")
			}
		})
	}
	for range 5 {
		time.Sleep(300 * time.Millisecond)
		d.close()
		time.Sleep(100 * time.Millisecond)
		d.open()
	}
	time.Sleep(300 * time.Millisecond)
	close(done)
	wg.Wait()
	t.Logf("replies: %v", replies)
	for reply, n := range replies {
		switch reply {
		case "bob@example.com 250 2.1.5", "blocked@example.com 554 5.7.1":
			if n < 10 {
				t.Errorf("%s only %d times", reply, n)
			}
		case "bob@example.com 451 4.3.5", "blocked@example.com 451 4.3.5", "bob@example.com 451 4.3.0", "blocked@example.com 451 4.3.0":
		default:
			t.Errorf("%d times %s", n, reply)
		}
	}
}

// With fewer connections allowed than Postfix has processes, those that are
// idle make room, and nobody notices.
func TestIdleConnectionsMakeRoom(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dir := shortDir(t)
	table := file(t, dir, "recipients", "blocked@example.com REJECT no\n")
	d := openTables(t, dir, map[string]lookup.TableConfig{"recipients": {Source: "texthash:" + table, Search: lookup.SearchAccess}}, nil)
	cfg := d.cfg
	cfg.MaxConnections = 2
	if err := d.server.Configure(cfg, nil); err != nil {
		t.Fatal(err)
	}
	p := startPostfix(t, false, "smtpd_recipient_restrictions = reject_unauth_destination, check_recipient_access "+d.unix("recipients"))
	var sessions []*session
	for range 4 {
		sessions = append(sessions, p.dial("192.0.2.7", ""))
	}
	for range 2 {
		for _, s := range sessions {
			s.cmd(250, "MAIL FROM:<x@sender.test>")
			matches(t, "refused by the table", s.say("RCPT TO:<blocked@example.com>"), `^554 5\.7\.1 `)
			s.cmd(250, "RSET")
			time.Sleep(1100 * time.Millisecond) // what counts as idle
		}
	}
	if n := d.server.Status().Connections; n != 2 {
		t.Errorf("%d connections", n)
	}
}

// Of some tables Postfix does not ask a socketmap, as the manual says.
func TestWhatPostfixDoesNotAskTheDoor(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dir := shortDir(t)
	table := file(t, dir, "t", "bob@example.com box/\n")
	d := openTables(t, dir, map[string]lookup.TableConfig{"t": {Source: "texthash:" + table, Search: lookup.SearchMailbox}}, nil)
	for _, name := range []string{"virtual_mailbox_maps", "virtual_uid_maps"} {
		p := startPostfix(t, false, name+" = "+d.inet("t"), "smtpd_recipient_restrictions = reject_unauth_destination")
		s := p.dial("192.0.2.7", "")
		rcpt, data := s.mail("x@sender.test", "bob@example.com")
		matches(t, name, rcpt[0]+" / "+data, `^250 .* / 250 `)
		p.logs("status=deferred (mail system configuration error)")
		p.logs("map is not allowed for security-sensitive data")
	}
}

// logs waits until the log holds a text.
func (p *postfix) logs(text string) {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	for !strings.Contains(p.log(), text) {
		if time.Now().After(deadline) {
			p.t.Fatalf("the log does not say %q:\n%s", text, p.log())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// A table that is not there, or cannot answer, makes mail wait: it is neither
// refused for good nor let in.
func TestUnknownTableMakesMailWait(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dir := shortDir(t)
	empty := file(t, dir, "empty", "/(x?)@/ $1\n")
	d := openTables(t, dir, map[string]lookup.TableConfig{"empty": {Source: "regexp:" + empty}}, nil)
	for setting, want := range map[string]string{
		"smtpd_recipient_restrictions = reject_unauth_destination, check_recipient_access %s": `^451 4\.3\.5 .*Server configuration error`,
		"virtual_alias_maps = %s":      `^451 4\.3\.0 .*Temporary lookup failure`,
		"virtual_mailbox_maps = %s":    `^451 4\.3\.0 .*Temporary lookup failure`,
		"virtual_mailbox_domains = %s": `^451 4\.3\.0 .*Temporary lookup failure`,
		"transport_maps = %s":          `^451 4\.3\.0 .*Temporary lookup failure`,
		"mynetworks = %s\nsmtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination": `^451 4\.3\.0 .*Temporary lookup failure`,
	} {
		tables := []string{d.inet("none")}
		if strings.Contains(setting, "check_recipient_access") || strings.Contains(setting, "virtual_mailbox_maps") {
			tables = append(tables, d.unix("empty"))
		}
		for _, table := range tables {
			p := startPostfix(t, false, fmt.Sprintf(setting, table))
			s := p.dial("192.0.2.7", "")
			reply := s.say("MAIL FROM:<y@sender.test>")
			if strings.HasPrefix(reply, "250") {
				reply = s.say("RCPT TO:<bob@example.com>")
			}
			matches(t, setting+" "+table, reply, want)
			p.logs("socketmap server temporary error")
		}
	}
}

// exampleTables are what stands in the files of configs/lookup.toml.example.
var exampleTables = map[string]string{
	"transport":          "example.org relay:[127.0.0.1]:%d\n",
	"tls_policy":         "[127.0.0.1]:%d none\n",
	"client_access.cidr": "198.51.100.0/24 REJECT net\n",
	"client_access":      "bad.example REJECT name\n",
	"relay_domains":      "example.org x\n",
	"relay_recipients":   "bob@example.org x\n",
}

// The shipped example does what it says, with all of Postfix in its chroot.
func TestLookupExample(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	next := startPostfix(t, false, "virtual_mailbox_domains = example.org", "smtpd_recipient_restrictions = permit")
	main, err := os.ReadFile("../configs/main.cf.lookup.example")
	if err != nil {
		t.Fatal(err)
	}
	p := startPostfix(t, true, string(main), "virtual_mailbox_domains =", "smtpd_recipient_restrictions = reject_unauth_destination")
	for name, text := range exampleTables {
		if strings.Contains(text, "%d") {
			text = fmt.Sprintf(text, next.port)
		}
		file(t, p.dir, name, text)
	}
	if err := os.Mkdir(filepath.Join(p.dir, "queue/postern"), 0o755); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile("../configs/lookup.toml.example")
	if err != nil {
		t.Fatal(err)
	}
	example := struct {
		Lookup lookup.Config                 `toml:"lookup"`
		Tables map[string]lookup.TableConfig `toml:"tables"`
	}{Lookup: lookup.DefaultConfig()}
	placed := strings.NewReplacer("/etc/postfix/", p.dir+"/", "/var/spool/postfix/", p.dir+"/queue/", ":10042", ":"+freePort(t)).Replace(string(text))
	if err := toml.Unmarshal([]byte(placed), &example); err != nil {
		t.Fatal(err)
	}
	for name, table := range example.Tables {
		table.AnswerDomains = table.MapDomains != nil // what is not said
		example.Tables[name] = table
	}
	serveTables(t, example.Lookup, example.Tables, nil)

	s := p.dial("192.0.2.7", "")
	rcpt, data := s.mail("x@sender.test", "bob@example.org", "bob+x@example.net", "bob@sub.example.org", "al@example.org", "al@example.com", "x@elsewhere.test")
	for i, want := range []string{
		`^250 `, `^250 `, `^550 5\.1\.1 .*User unknown in relay recipient table`, `^550 5\.1\.1 .*User unknown in relay recipient table`,
		`^550 5\.1\.1 .*User unknown in virtual alias table`, `^[45]54 .*Relay access denied`,
	} {
		matches(t, "recipient "+fmt.Sprint(i), rcpt[i], want)
	}
	matches(t, "data", data, `^250 `)
	next.messages(2)
	for client, want := range map[string]string{"198.51.100.7 ": "net", "192.0.2.8 a.bad.example": "name"} {
		addr, name, _ := strings.Cut(client, " ")
		s := p.dial(addr, name)
		s.cmd(250, "MAIL FROM:<x@sender.test>")
		matches(t, client, s.say("RCPT TO:<bob@example.org>"), `^554 5\.7\.1 .*Access denied|: `+want+`$`)
	}
}
