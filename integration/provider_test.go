package integration

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/textproto"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"

	"postern/internal/certtest"
	"postern/internal/dnstest"
)

// Networks in the shape that Office 365 and Google publish them.
var spfRecords = map[string]string{
	"spf.protection.outlook.com": "v=spf1 ip4:40.92.0.0/15 ip4:40.107.0.0/16 ip4:52.100.0.0/15 ip4:52.102.0.0/16 ip4:52.103.0.0/17 ip4:104.47.0.0/17 " +
		"ip6:2a01:111:f400::/48 ip6:2a01:111:f403::/49 ip6:2a01:111:f403:8000::/51 ip6:2a01:111:f403:c000::/51 ip6:2a01:111:f403:f000::/52 -all",
	"_spf.google.com": "v=spf1 include:_netblocks.google.com include:_netblocks2.google.com include:_netblocks3.google.com ~all",
	"_netblocks.google.com": "v=spf1 ip4:35.190.247.0/24 ip4:64.233.160.0/19 ip4:66.102.0.0/20 ip4:66.249.80.0/20 ip4:72.14.192.0/18 ip4:74.125.0.0/16 " +
		"ip4:108.177.8.0/21 ip4:173.194.0.0/16 ip4:209.85.128.0/17 ip4:216.58.192.0/19 ip4:216.239.32.0/19 ~all",
	"_netblocks2.google.com": "v=spf1 ip6:2001:4860:4000::/36 ip6:2404:6800:4000::/36 ip6:2607:f8b0:4000::/36 ip6:2800:3f0:4000::/36 ip6:2a00:1450:4000::/36 ip6:2c0f:fb50:4000::/36 ~all",
	"_netblocks3.google.com": "v=spf1 ip4:172.217.0.0/19 ip4:172.217.32.0/20 ip4:172.217.128.0/19 ip4:172.217.160.0/20 ip4:172.217.192.0/19 ip4:172.253.56.0/21 " +
		"ip4:172.253.112.0/20 ip4:108.177.96.0/19 ip4:35.191.0.0/16 ip4:130.211.0.0/22 ~all",
}

const (
	fromOffice = "40.92.1.1"
	fromGoogle = "209.85.128.5"
	stranger   = "192.0.2.250"
	outside    = "someone@elsewhere.example"
)

// spf sets the SPF record of a name, "" for none.
func spf(dns *dnstest.Server, name, text string) {
	dns.Remove(name + ".")
	if text != "" {
		dns.Add(fmt.Sprintf("%s. 3600 IN TXT %q", name, text))
	}
}

func spfServer(t *testing.T) *dnstest.Server {
	t.Helper()
	dns := dnstest.Start(t)
	for name, text := range spfRecords {
		spf(dns, name, text)
	}
	return dns
}

// providerDaemon is a daemon with lists of providers and all three doors.
type providerDaemon struct {
	*daemon
	milter, lookup string // ports
}

// newProviders makes one that is not started. sections stands behind
// [provider] in the configuration, so it begins with keys of that.
func newProviders(t *testing.T, dns *dnstest.Server, sections string) *providerDaemon {
	t.Helper()
	p := &providerDaemon{milter: freePort(t), lookup: freePort(t)}
	p.daemon = newDaemon(t, p.text(dns, sections))
	return p
}

func (p *providerDaemon) text(dns *dnstest.Server, sections string) string {
	return withDNS(fmt.Sprintf(`
hostname = "gw.example.com"
[milter]
listen = ["tcp:127.0.0.1:%s"]
[lookup]
listen = ["unix:{dir}/lookup.sock", "tcp:127.0.0.1:%s"]
reload_interval = "100ms"
[greylist]
mode = "off"
[chains.relay]
purpose = "relay"
checks = ["provider"]
[dns]
timeout = "500ms"
servfail_ttl = "1s"
[provider]
state_dir = "{dir}/providers"
%s`, p.milter, p.lookup, sections), dns)
}

// ready starts it and waits until it has all of the lists.
func (p *providerDaemon) ready(lists ...string) {
	p.t.Helper()
	p.start()
	p.has(lists...)
}

func (p *providerDaemon) has(lists ...string) {
	p.t.Helper()
	p.eventually("the lists "+strings.Join(lists, " "), func() bool {
		out := p.run("provider", "list")
		for _, l := range lists {
			if !strings.Contains(out, l+": ") || strings.Contains(out, l+": NO LIST YET") {
				return false
			}
		}
		return true
	})
}

func (p *providerDaemon) unix(table string) string {
	return "socketmap:unix:" + filepath.Join(p.dir, "lookup.sock") + ":" + table
}

func (p *providerDaemon) inet(table string) string {
	return "socketmap:inet:127.0.0.1:" + p.lookup + ":" + table
}

// relaying are the lines of docs/providers.md for relaying.
func (p *providerDaemon) relaying(more ...string) []string {
	service := "check_policy_service { unix:" + p.socket() + ", timeout=25s, default_action=DUNNO"
	return append([]string{
		"smtpd_relay_restrictions = permit_auth_destination, " + service + ", policy_context=relay }, reject",
		"smtpd_recipient_restrictions = " + service + " }",
		"smtpd_milters = inet:127.0.0.1:" + p.milter,
		"milter_default_action = tempfail",
		"milter_connect_timeout = 2s",
		"default_transport = discard",
	}, more...)
}

// hand hands a message in, and returns the reply to each recipient and, when
// one was taken, to the message, whose lines end in CRLF.
func (s *session) hand(from, message string, to ...string) (rcpt []string, data string) {
	s.t.Helper()
	if reply := s.say("MAIL FROM:<%s>", from); !strings.HasPrefix(reply, "250") {
		return []string{reply}, ""
	}
	taken := false
	for _, r := range to {
		reply := s.say("RCPT TO:<%s>", r)
		taken = taken || strings.HasPrefix(reply, "250")
		rcpt = append(rcpt, reply)
	}
	if !taken {
		s.cmd(250, "RSET")
		return rcpt, ""
	}
	if reply := s.say("DATA"); !strings.HasPrefix(reply, "354") {
		s.cmd(250, "RSET")
		return rcpt, reply
	}
	w := s.DotWriter()
	if _, err := w.Write([]byte(message)); err != nil {
		s.t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		s.t.Fatal(err)
	}
	return rcpt, s.reply()
}

func letter(from string, fields ...string) string {
	return strings.Join(append(fields, "From: <"+from+">", "Subject: test", "Message-Id: <1@example.org>", "Date: Thu, 1 Jan 1970 00:00:00 +0000", "", "hello", ""), "\r\n")
}

// inode tells one file from its successor.
func inode(t *testing.T, path string) (uint64, os.FileInfo) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Ino, st
}

// Postfix asks the lists of providers, the access lists and the tables live.
func TestListsOverTheLookupDoor(t *testing.T) {
	t.Parallel()
	require(t, "postfix", "postmap")
	dns := spfServer(t)
	d := newProviders(t, dns, `
[[provider.list]]
name = "office365"
max_grow = 1000000
[[provider.list]]
name = "google"
[access]
allow = ["inline:192.0.2.7", "inline:2001:db8:a::/48"]
deny = ["inline:198.51.100.0/24 550 5.7.1 Not from you", "inline:192.0.2.66"]
[tables.clients]
source = "cidr:{dir}/clients"
[tables.recipients]
source = "texthash:{dir}/recipients"
search = "access"
`)
	clients := file(t, d.dir, "clients", "203.0.113.0/24 REJECT by table\n")
	file(t, d.dir, "recipients", "blocked@example.com REJECT blocked\nexample.com OK\n")
	d.ready("office365", "google")

	for _, q := range []struct{ table, key, want string }{
		{"provider-office365", fromOffice, "OK"},
		{"provider-office365", "2a01:111:f400::1", "OK"},
		{"provider-office365", fromGoogle, ""},
		{"provider-office365", "mail.example.org", ""},
		{"provider-google", fromGoogle, "OK"},
		{"provider-google", "2607:f8b0:4000::1", "OK"},
		{"access-allow", "192.0.2.7", "OK"},
		{"access-allow", "2001:db8:a::1", "OK"},
		{"access-allow", "198.51.100.7", ""},
		{"access-deny", "198.51.100.7", "550 5.7.1 Not from you"},
		{"access-deny", "192.0.2.66", "554 5.7.1 Access denied"},
		{"access-deny", "192.0.2.7", ""},
		{"clients", "203.0.113.9", "REJECT by table"},
		{"recipients", "x@example.com", "OK"},
	} {
		for _, over := range []string{d.unix(q.table), d.inet(q.table)} {
			if got, complaint := postmapQ(t, q.key, over); got != q.want || complaint != "" {
				t.Errorf("%s %s: %q %s, want %q", over, q.key, got, complaint, q.want)
			}
		}
		if out, err := d.try("lookup", q.table, q.key); !strings.HasPrefix(out, q.want) || (err == nil) != (q.want != "") {
			t.Errorf("lookup %s %s: %q, %v", q.table, q.key, out, err)
		}
	}
	if _, complaint := postmapQ(t, "x", d.inet("nosuch")); !strings.Contains(complaint, `postern has no table "nosuch"`) {
		t.Errorf("a table that is not there: %s", complaint)
	}
	if out, err := d.try("lookup", "nosuch", "x"); err == nil || !strings.Contains(out, "nosuch") {
		t.Errorf("%q, %v", out, err)
	}

	p := startPostfix(t, true, "smtpd_client_restrictions = check_client_access "+d.inet("provider-office365")+
		", check_client_access "+d.inet("access-allow")+", check_client_access "+d.inet("access-deny")+", check_client_access "+d.inet("clients")+", reject",
		"smtpd_recipient_restrictions = reject_unauth_destination, check_recipient_access "+d.inet("recipients")+", reject")
	from := func(client, to string) string {
		s := p.dial(client, "")
		s.cmd(250, "MAIL FROM:<x@sender.test>")
		return s.say("RCPT TO:<%s>", to)
	}
	for client, want := range map[string]string{
		fromOffice: `^250 `, "2a01:111:f400::1": `^250 `, "192.0.2.7": `^250 `, "198.51.100.7": `^550 5\.7\.1 .*Not from you`,
		"203.0.113.9": `^554 5\.7\.1 .*by table`, stranger: `^554 5\.7\.1 .*Access denied`, fromGoogle: `^554 5\.7\.1 .*Access denied`,
	} {
		matches(t, client, from(client, "bob@example.com"), want)
	}
	matches(t, "a recipient of the table", from(fromOffice, "blocked@example.com"), `^554 5\.7\.1 .*blocked`)

	// Why mynetworks is not the way: whoever is in the list relays.
	q := startPostfix(t, false, "mynetworks = "+d.unix("provider-office365"), "smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination",
		"default_transport = discard")
	s := q.dial(fromOffice, "")
	rcpt, data := s.mail("x@sender.test", outside)
	matches(t, "mynetworks", rcpt[0]+data, `^250 .*250 `)
	rcpt, _ = q.dial(stranger, "").mail("x@sender.test", outside)
	matches(t, "not in mynetworks", rcpt[0], `^[45]54 .*Relay access denied`)

	// Changes are in force at once, in processes that run already.
	edit(t, clients, "203.0.113.0/24 REJECT anew\n")
	d.eventually("the edited table", func() bool {
		out, _ := d.try("lookup", "clients", "203.0.113.9")
		return strings.HasPrefix(out, "REJECT anew")
	})
	matches(t, "an edited table", from("203.0.113.9", "bob@example.com"), `anew`)
	spf(dns, "spf.protection.outlook.com", strings.Replace(spfRecords["spf.protection.outlook.com"], " -all", " ip4:64.4.22.64/26 -all", 1))
	matches(t, "before the refresh", from("64.4.22.65", "bob@example.com"), `^554 `)
	expect(t, "refresh", d.run("provider", "refresh", "office365"), "office365: CHANGED; ", "+ 64.4.22.64/26", "1 questions in 1 round trips")
	matches(t, "after the refresh", from("64.4.22.65", "bob@example.com"), `^250 `)
	expect(t, "whois", d.run("provider", "whois", "64.4.22.65"), "office365: 64.4.22.64/26 by ip4:64.4.22.64/26 in the record of spf.protection.outlook.com")
}

// Files for Postfix are written whole, with their mode and owner, and only
// when something has changed.
func TestExportedFilesServePostfix(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dns := spfServer(t)
	d := newProviders(t, dns, `
[[provider.list]]
name = "google"
[[provider.list.export]]
path = "{dir}/google.cidr"
mode = "0640"
owner = "root:postfix"
[[provider.list.export]]
path = "{dir}/google.postscreen"
result = "permit"
`)
	d.ready("google")
	path := filepath.Join(d.dir, "google.cidr")
	d.eventually("the files", func() bool {
		_, err := os.Stat(filepath.Join(d.dir, "google.postscreen"))
		return err == nil
	})
	first, st := inode(t, path)
	sys := st.Sys().(*syscall.Stat_t)
	if gid := idOf(t, "-g"); st.Mode() != 0o640 || sys.Uid != 0 || fmt.Sprint(sys.Gid) != gid {
		t.Errorf("mode %v, owner %d:%d", st.Mode(), sys.Uid, sys.Gid)
	}
	text, err := os.ReadFile(path)
	if err != nil || string(text) != d.run("provider", "export", "google") {
		t.Errorf("%v; the file holds\n%s", err, text)
	}
	screen, err := os.ReadFile(filepath.Join(d.dir, "google.postscreen"))
	if err != nil || string(screen) != d.run("provider", "export", "google", "--result", "permit") || !bytes.Contains(screen, []byte("209.85.128.0/17\tpermit\n")) {
		t.Errorf("%v; the file holds\n%s", err, screen)
	}
	expect(t, "lines", d.run("provider", "postfix", "google"), "check_client_access cidr:"+path, "#mynetworks", "postscreen_access_list = permit_mynetworks, cidr:",
		"check_client_access socketmap:unix:"+d.dir+"/lookup.sock:provider-google")

	p := startPostfix(t, false, "smtpd_client_restrictions = check_client_access cidr:"+path+", reject", "smtpd_recipient_restrictions = reject_unauth_destination")
	from := func(client string) string {
		s := p.dial(client, "")
		s.cmd(250, "MAIL FROM:<x@sender.test>")
		return s.say("RCPT TO:<bob@example.com>")
	}
	matches(t, "listed", from(fromGoogle), `^250 `)
	matches(t, "listed, IPv6", from("2607:f8b0:4000::1"), `^250 `)
	matches(t, "not listed", from(fromOffice), `^554 `)

	expect(t, "refresh", d.run("provider", "refresh", "google"), "google: UNCHANGED", "2 round trips")
	if again, now := inode(t, path); again != first || !now.ModTime().Equal(st.ModTime()) {
		t.Error("the file was written though nothing has changed")
	}
	spf(dns, "_netblocks.google.com", strings.Replace(spfRecords["_netblocks.google.com"], " ~all", " ip4:64.18.0.0/20 ~all", 1))
	// A reader never sees a part: whoever has the old file open keeps all of it.
	old, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close() //nolint:errcheck // only read
	d.run("provider", "refresh", "google")
	if again, now := inode(t, path); again == first || now.Mode() != 0o640 || now.Sys().(*syscall.Stat_t).Gid != sys.Gid {
		t.Error("the file was not replaced, or lost its mode or owner")
	}
	var held bytes.Buffer
	if _, err := held.ReadFrom(old); err != nil || held.String() != string(text) {
		t.Errorf("%v; the old file changed under its reader", err)
	}
	p.command("reload")
	deadline := time.Now().Add(patience)
	for !strings.HasPrefix(from("64.18.0.1"), "250 ") {
		if time.Now().After(deadline) {
			t.Fatal("Postfix does not use the new file")
		}
		time.Sleep(50 * time.Millisecond)
	}
}

const (
	tenantA = "01234567-89ab-cdef-0123-456789abcdef"
	tenantB = "fedcba98-7654-3210-fedc-ba9876543210"
	tenant  = "X-MS-Exchange-CrossTenant-Id: "
)

// relaySections are one section for each kind of condition. Their networks are
// of files, but for those of the two providers.
const relaySections = `
own_domains = ["example.com"]
[[provider.list]]
name = "by-sender"
files = ["{dir}/by-sender"]
allow_reserved = true
[[provider.list.relay]]
sender_domains = ["sender.example", ".below.example"]

[[provider.list]]
name = "by-login"
files = ["{dir}/by-login"]
allow_reserved = true
[[provider.list.relay]]
authenticated = true

[[provider.list]]
name = "by-name"
files = ["{dir}/by-name"]
allow_reserved = true
[[provider.list.relay]]
sender_domains = ["name.example"]
cert_names = ["mail.example.net"]

[[provider.list]]
name = "by-fingerprint"
files = ["{dir}/by-fingerprint"]
allow_reserved = true
[[provider.list.relay]]
sender_domains = ["print.example"]
cert_fingerprints = ["FINGERPRINT"]

[[provider.list]]
name = "open"
files = ["{dir}/open"]
allow_reserved = true
[[provider.list.relay]]
open_to_all_customers = true

[[provider.list]]
name = "closed"
files = ["{dir}/closed"]
allow_reserved = true

[[provider.list]]
name = "office365"
[[provider.list.relay]]
sender_domains = ["example.org"]
null_sender = true
tenant_ids = ["` + tenantA + `"]
[[provider.list.relay]]
sender_domains = ["second.example"]
tenant_ids = ["` + tenantB + `"]

[[provider.list]]
name = "google"
[[provider.list.relay]]
sender_domains = ["example.net"]
dkim_domains = ["example.net"]
`

// startTLS encrypts a session with a client's certificate.
func (s *session) startTLS(pair *certtest.Pair) {
	s.t.Helper()
	s.cmd(220, "STARTTLS")
	cfg := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // whom we talk to is known
	if pair.CertFile != "" {
		// Also one that the server's authorities have not signed.
		cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair.Cert, nil }
	}
	c := tls.Client(s.conn, cfg)
	if err := c.Handshake(); err != nil {
		s.t.Fatal(err)
	}
	s.Conn = textproto.NewConn(c)
	s.cmd(250, "EHLO mail.example.org")
}

// trust writes a file of authorities.
func trust(t *testing.T, pairs ...certtest.Pair) string {
	t.Helper()
	path := filepath.Join(shortDir(t), "trusted.pem")
	var out []byte
	for _, pair := range pairs {
		b, err := os.ReadFile(pair.CertFile)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	if err := os.WriteFile(path, out, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// withTLS are the lines of main.cf for clients' certificates.
func withTLS(server certtest.Pair, trusted string) []string {
	return []string{
		"smtpd_tls_security_level = may", "smtpd_tls_cert_file = " + server.CertFile, "smtpd_tls_key_file = " + server.KeyFile,
		"smtpd_tls_ask_ccert = yes", "smtpd_tls_CAfile = " + trusted, "smtpd_tls_fingerprint_digest = sha256", "smtpd_tls_session_cache_database =",
	}
}

// dkimSigner publishes a key of a domain and returns what signs with it.
func dkimSigner(t *testing.T, dns *dnstest.Server, selector, domain string) func(message string) string {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	dns.Add(fmt.Sprintf("%s._domainkey.%s. 60 IN TXT \"v=DKIM1; k=ed25519; p=%s\"", selector, domain, base64.StdEncoding.EncodeToString(public)))
	return func(message string) string {
		t.Helper()
		var out bytes.Buffer
		o := &dkim.SignOptions{Domain: domain, Selector: selector, Signer: crypto.Signer(private), HeaderKeys: []string{"From", "Subject", "Message-Id", "Date"}}
		if err := dkim.Sign(&out, strings.NewReader(message), o); err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
}

// relayCase is one message and what becomes of it.
type relayCase struct {
	name, client, from string
	message            string         // default: a plain one
	cert               *certtest.Pair // nil: no TLS; without files: none is shown
	login              string
	rcpt, data         string // patterns of replies
}

func (p *postfix) relays(tt *relayCase) {
	p.t.Helper()
	message := tt.message
	if message == "" {
		message = letter(tt.from)
	}
	client := tt.client
	if tt.login != "" {
		client += " LOGIN=" + tt.login // more of XCLIENT
	}
	s := p.dial(client, "")
	if tt.cert != nil {
		s.startTLS(tt.cert)
	}
	rcpt, data := s.hand(tt.from, message, outside)
	matches(p.t, tt.name+", recipient", rcpt[0], tt.rcpt)
	if tt.data != "" || data != "" {
		matches(p.t, tt.name+", message", data, "^"+tt.data)
	}
	s.cmd(221, "QUIT")
}

const (
	denied  = `^554 5\.7\.1 .*Recipient address rejected: Access denied`
	refused = `^550 5\.7\.1 Relaying denied: this message does not come from an allowed customer`
	waits   = `^451 4\.7\.1 Relaying not possible now`
)

// Every condition, met and not met, through a real Postfix.
func TestRelayConditions(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dns := spfServer(t)
	server := certtest.New(t, "gw.example.com")
	byName, protection := certtest.NewClient(t, "mail.example.net"), certtest.NewClient(t, "mail.protection.example.net")
	byPrint := certtest.NewClient(t, "whatever.example") // nobody trusts it
	sum := sha256.Sum256(byPrint.Cert.Certificate[0])
	trusted := trust(t, byName, protection)
	impostor := certtest.NewClient(t, "mail.example.net") // the same name, signed by nobody we trust

	d := newProviders(t, dns, strings.Replace(relaySections, "FINGERPRINT", hex.EncodeToString(sum[:]), 1))
	nets := map[string]string{"by-sender": "192.0.2.16", "by-login": "192.0.2.32", "by-name": "192.0.2.48", "by-fingerprint": "192.0.2.64", "open": "192.0.2.80", "closed": "192.0.2.96"}
	for name, addr := range nets {
		file(t, d.dir, name, addr+"/28\n")
	}
	sign := dkimSigner(t, dns, "sel", "example.net")
	signOther := dkimSigner(t, dns, "sel", "other.example")
	lost := dkimSigner(t, dns, "sel", "lost.example")
	d.run("check")
	d.ready("by-sender", "office365", "google")

	p := startPostfix(t, false, d.relaying(withTLS(server, trusted)...)...)

	net := letter("a@example.net")
	for _, tt := range []relayCase{
		{name: "sender domain", client: nets["by-sender"], from: "a@sender.example", rcpt: `^250 `, data: `^250 `},
		{name: "sender domain, upper case", client: nets["by-sender"], from: "A@Sender.Example", rcpt: `^250 `, data: `^250 `},
		{name: "sender below a domain", client: nets["by-sender"], from: "a@x.below.example", rcpt: `^250 `, data: `^250 `},
		{name: "another sender", client: nets["by-sender"], from: "a@other.example", rcpt: denied},
		{name: "sender below one that is not meant so", client: nets["by-sender"], from: "a@x.sender.example", rcpt: denied},
		{name: "null sender", client: nets["by-sender"], from: "", rcpt: denied},
		{name: "the right sender from elsewhere", client: stranger, from: "a@sender.example", rcpt: denied},
		{name: "the right sender from another list", client: fromOffice, from: "a@sender.example", rcpt: denied},
		{name: "logged in", client: nets["by-login"], from: "a@any.example", login: "ann", rcpt: `^250 `, data: `^250 `},
		{name: "not logged in", client: nets["by-login"], from: "a@any.example", rcpt: denied},
		{name: "certificate name", client: nets["by-name"], from: "a@name.example", cert: &byName, rcpt: `^250 `, data: `^250 `},
		{name: "certificate name, another sender", client: nets["by-name"], from: "a@example.org", cert: &byName, rcpt: denied},
		{name: "another's trusted certificate", client: nets["by-name"], from: "a@name.example", cert: &protection, rcpt: denied},
		{name: "the name, not trusted", client: nets["by-name"], from: "a@name.example", cert: &impostor, rcpt: denied},
		{name: "TLS without a certificate", client: nets["by-name"], from: "a@name.example", cert: &certtest.Pair{}, rcpt: denied},
		{name: "no TLS", client: nets["by-name"], from: "a@name.example", rcpt: denied},
		{name: "the right certificate from elsewhere", client: stranger, from: "a@name.example", cert: &byName, rcpt: denied},
		{name: "fingerprint", client: nets["by-fingerprint"], from: "a@print.example", cert: &byPrint, rcpt: `^250 `, data: `^250 `},
		{name: "another fingerprint", client: nets["by-fingerprint"], from: "a@print.example", cert: &byName, rcpt: denied},
		{name: "open to all", client: nets["open"], from: "a@any.example", rcpt: `^250 `, data: `^250 `},
		{name: "a list without relaying", client: nets["closed"], from: "a@sender.example", rcpt: denied},
		{name: "no list", client: stranger, from: "a@example.org", message: letter("a@example.org", tenant+tenantA), rcpt: denied},

		{name: "tenant", client: fromOffice, from: "a@example.org", message: letter("a@example.org", tenant+tenantA), rcpt: `^250 `, data: `^250 `},
		{name: "tenant, upper case", client: fromOffice, from: "a@example.org", message: letter("a@example.org", strings.ToUpper(tenant+tenantA)), rcpt: `^250 `, data: `^250 `},
		{name: "tenant, null sender", client: fromOffice, from: "", message: letter("a@example.org", tenant+tenantA), rcpt: `^250 `, data: `^250 `},
		{name: "tenant, IPv6", client: "2a01:111:f400::1", from: "a@example.org", message: letter("a@example.org", tenant+tenantA), rcpt: `^250 `, data: `^250 `},
		{name: "another tenant", client: fromOffice, from: "a@example.org", message: letter("a@example.org", tenant+tenantB), rcpt: `^250 `, data: refused},
		{name: "another tenant, null sender", client: fromOffice, from: "", message: letter("a@example.org", tenant+tenantB), rcpt: `^250 `, data: refused},
		{name: "no tenant", client: fromOffice, from: "a@example.org", message: letter("a@example.org"), rcpt: `^250 `, data: refused},
		{name: "two tenants", client: fromOffice, from: "a@example.org", message: letter("a@example.org", tenant+tenantA, tenant+tenantB), rcpt: `^250 `, data: refused},
		{name: "the same tenant twice", client: fromOffice, from: "a@example.org", message: letter("a@example.org", tenant+tenantA, tenant+tenantA), rcpt: `^250 `, data: refused},
		{name: "two in one field", client: fromOffice, from: "a@example.org", message: letter("a@example.org", tenant+tenantA+" "+tenantB), rcpt: `^250 `, data: refused},
		{name: "no id at all", client: fromOffice, from: "a@example.org", message: letter("a@example.org", tenant), rcpt: `^250 `, data: refused},
		{name: "the tenant in the body", client: fromOffice, from: "a@example.org", message: letter("a@example.org") + tenant + tenantA + "\r\n", rcpt: `^250 `, data: refused},
		{name: "a second tenant's section", client: fromOffice, from: "a@second.example", message: letter("a@second.example", tenant+tenantB), rcpt: `^250 `, data: `^250 `},
		{name: "one tenant under the other's domain", client: fromOffice, from: "a@second.example", message: letter("a@second.example", tenant+tenantA), rcpt: `^250 `, data: refused},
		{name: "a domain of nobody's", client: fromOffice, from: "a@other.example", message: letter("a@other.example", tenant+tenantA), rcpt: denied},

		{name: "signed", client: fromGoogle, from: "a@example.net", message: sign(net), rcpt: `^250 `, data: `^250 `},
		{name: "signed by others too", client: fromGoogle, from: "a@example.net", message: lost(signOther(sign(net))), rcpt: `^250 `, data: `^250 `},
		{name: "not signed", client: fromGoogle, from: "a@example.net", message: net, rcpt: `^250 `, data: refused},
		{name: "signed by another", client: fromGoogle, from: "a@example.net", message: signOther(net), rcpt: `^250 `, data: refused},
		{name: "the subject changed", client: fromGoogle, from: "a@example.net", message: strings.Replace(sign(net), "Subject: test", "Subject: text", 1), rcpt: `^250 `, data: refused},
		{name: "the body changed", client: fromGoogle, from: "a@example.net", message: sign(net) + "more\r\n", rcpt: `^250 `, data: refused},
		{name: "two From fields", client: fromGoogle, from: "a@example.net", message: "From: <x@example.org>\r\n" + sign(net), rcpt: `^250 `, data: refused},
		{name: "signed, another sender", client: fromGoogle, from: "a@example.org", message: sign(net), rcpt: denied},
		{name: "signed, from elsewhere", client: stranger, from: "a@example.net", message: sign(net), rcpt: denied},
		{name: "signed, null sender", client: fromGoogle, from: "", message: sign(net), rcpt: denied},
	} {
		p.relays(&tt)
	}

	// What DNS cannot tell now is tried again, and passes then.
	late := dkimSigner(t, dns, "late", "example.net")
	dns.Behave("late._domainkey.example.net", dnstest.ServFail)
	_, data := p.dial(fromGoogle, "").hand("a@example.net", late(net), outside)
	matches(t, "the key cannot be asked for", data, waits)
	dns.BehaveWell("late._domainkey.example.net")
	d.eventually("the message that waited", func() bool {
		_, data := p.dial(fromGoogle, "").hand("a@example.net", late(net), outside)
		return strings.HasPrefix(data, "250 ")
	})

	// Mail for our own domains needs no permit, and is no business of these
	// conditions: other customers write to us too.
	rcpt, data := p.dial(fromOffice, "").hand("a@example.org", letter("a@example.org", tenant+tenantB), "bob@example.com")
	matches(t, "another tenant's mail to us", rcpt[0]+" "+data, `^250 .* 250 `)
	// With one recipient elsewhere the whole message is held to them.
	rcpt, data = p.dial(fromOffice, "").hand("a@example.org", letter("a@example.org", tenant+tenantB), "bob@example.com", outside)
	matches(t, "to us and elsewhere", rcpt[0]+" "+rcpt[1]+" "+data, `^250 .* 250 .* 550 5\.7\.1 Relaying denied`)
	// One message that is refused says nothing of the next in the session.
	s := p.dial(fromOffice, "")
	_, data = s.hand("a@example.org", letter("a@example.org", tenant+tenantB), outside)
	matches(t, "the first", data, refused)
	_, data = s.hand("a@example.org", letter("a@example.org", tenant+tenantA), outside)
	matches(t, "the second", data, `^250 `)
	_, data = s.hand("a@example.org", letter("a@example.org"), outside)
	matches(t, "the third", data, refused)

	d.decided("client", fromOffice, "reason", "provider-relay")
	d.decided("reason", "provider-relay-refused")
	for sender, want := range map[string]string{"a@example.org": "permit (provider-relay)", "a@other.example": "not relayed: "} {
		expect(t, "explain "+sender, d.run("explain", "--context", "relay", "--client", fromOffice, "--sender", sender, "--recipient", outside), want)
	}
	p.noComplaint()
}

// Both a certificate and a tenant: neither alone will do.
func TestRelayByCertificateAndTenant(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dns := spfServer(t)
	server := certtest.New(t, "gw.example.com")
	protection, other := certtest.NewClient(t, "mail.protection.example.net"), certtest.NewClient(t, "mail.example.net")
	d := newProviders(t, dns, `
own_domains = ["example.com"]
[[provider.list]]
name = "office365"
[[provider.list.relay]]
sender_domains = ["strict.example"]
tenant_ids = ["`+tenantA+`", "`+tenantB+`"]
cert_names = [".protection.example.net"]
`)
	d.ready("office365")
	p := startPostfix(t, false, d.relaying(withTLS(server, trust(t, protection, other))...)...)
	for _, tt := range []relayCase{
		{name: "tenant and certificate", client: fromOffice, from: "a@strict.example", cert: &protection, message: letter("a@strict.example", tenant+tenantA), rcpt: `^250 `, data: `^250 `},
		{name: "certificate, another tenant", client: fromOffice, from: "a@strict.example", cert: &protection, message: letter("a@strict.example", tenant+"0"), rcpt: `^250 `, data: refused},
		{name: "tenant, no certificate", client: fromOffice, from: "a@strict.example", message: letter("a@strict.example", tenant+tenantA), rcpt: denied},
		{name: "the other tenant", client: fromOffice, from: "a@strict.example", cert: &protection, message: letter("a@strict.example", tenant+tenantB), rcpt: `^250 `, data: `^250 `},
		{name: "tenant, another certificate", client: fromOffice, from: "a@strict.example", cert: &other, message: letter("a@strict.example", tenant+tenantA), rcpt: denied},
		{name: "tenant and certificate from elsewhere", client: stranger, from: "a@strict.example", cert: &protection, message: letter("a@strict.example", tenant+tenantA), rcpt: denied},
	} {
		p.relays(&tt)
	}
	p.noComplaint()
}
