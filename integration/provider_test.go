package integration

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
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
	"postern/internal/postfixtest"
	"postern/internal/redistest"
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
	if gid := postfixtest.ID(t, "-g"); st.Mode() != 0o640 || sys.Uid != 0 || fmt.Sprint(sys.Gid) != gid {
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

const byTenant = `
own_domains = ["example.com"]
[[provider.list]]
name = "office365"
`

const tenantSection = `
[[provider.list.relay]]
sender_domains = ["example.org"]
tenant_ids = ["` + tenantA + `"]
`

// What only the message can show is not counted on where nobody looks at it.
func TestNothingIsRelayedWithoutTheMilter(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dns := spfServer(t)
	d, other := newProviders(t, dns, byTenant+tenantSection), newProviders(t, dns, byTenant)
	d.ready("office365")
	other.ready("office365")
	good := letter("a@example.org", tenant+tenantA)
	forged := letter("a@example.org", tenant+tenantB)
	for name, milters := range map[string]string{"no milter": "smtpd_milters =", "another daemon's milter": "smtpd_milters = inet:127.0.0.1:" + other.milter} {
		p := startPostfix(t, false, d.relaying(milters)...)
		rcpt, _ := p.dial(fromOffice, "").hand("a@example.org", good, outside)
		matches(t, name, rcpt[0], denied)
	}
	d.decided("client", fromOffice, "chain", "relay", "action", "continue")

	p := startPostfix(t, false, d.relaying()...)
	// The daemon goes away between the recipient and the end of the message.
	begun := func(client string) *session {
		s := p.dial(client, "")
		s.cmd(250, "MAIL FROM:<a@example.org>")
		s.cmd(250, "RCPT TO:<%s>", outside)
		return s
	}
	end := func(s *session, message string) string {
		t.Helper()
		if reply := s.say("DATA"); !strings.HasPrefix(reply, "354") {
			return reply
		}
		w := s.DotWriter()
		if _, err := w.Write([]byte(message)); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		return s.reply()
	}
	s, idle := begun(fromOffice), p.dial(fromOffice, "")
	d.kill()
	matches(t, "the daemon was killed", end(s, good), `^451 4\.`)
	idle.cmd(250, "RSET")
	if reply := idle.say("MAIL FROM:<a@example.org>"); strings.HasPrefix(reply, "250") {
		matches(t, "a session from before", idle.say("RCPT TO:<%s>", outside), `^[45]`)
	}
	c := p.dial("", "")
	if reply := c.say("XCLIENT ADDR=%s", fromOffice); strings.HasPrefix(reply, "220") {
		c.cmd(250, "EHLO x.example")
		if reply := c.say("MAIL FROM:<a@example.org>"); strings.HasPrefix(reply, "250") {
			matches(t, "without the daemon", c.say("RCPT TO:<%s>", outside), `^[45]`)
		}
	}
	d.ready("office365")
	matches(t, "the daemon is back", end(begun(fromOffice), good), `^250 `)
	matches(t, "the daemon is back, another tenant", end(begun(fromOffice), forged), refused)

	// A reload in between changes nothing for a message that has its permit,
	// neither one that takes the conditions away nor one that switches off.
	for _, sections := range []string{byTenant, strings.Replace(byTenant, "own_domains", "mode = \"off\"\nown_domains", 1) + tenantSection} {
		s, t2 := begun(fromOffice), begun(fromOffice)
		d.configure(d.text(dns, sections))
		d.run("reload")
		matches(t, "forged, after a reload", end(s, forged), refused)
		matches(t, "good, after a reload", end(t2, good), `^250 `)
		rcpt, _ := p.dial(fromOffice, "").hand("a@example.org", good, outside)
		matches(t, "after a reload", rcpt[0], denied)
		d.configure(d.text(dns, byTenant+tenantSection))
		d.run("reload")
	}
	// An SMTP session from before anything looked at content is not shown to
	// anybody, so it gets no permit; the client may come back.
	d.configure(d.text(dns, byTenant+"\n[known]\nmode = \"off\"\n"))
	d.stop()
	d.ready("office365")
	s = p.dial(fromOffice, "")
	s.cmd(250, "MAIL FROM:<a@example.org>")
	s.cmd(250, "RSET")
	d.configure(d.text(dns, byTenant+tenantSection))
	d.run("reload")
	s.cmd(250, "MAIL FROM:<a@example.org>")
	matches(t, "an unwatched session", s.say("RCPT TO:<%s>", outside), `^451 4\.7\.1 `)
	matches(t, "a new one", end(begun(fromOffice), good), `^250 `)

	// In shadow mode nothing is permitted; the log says what would be refused.
	d.configure(d.text(dns, strings.Replace(byTenant, "own_domains", "mode = \"shadow\"\nown_domains", 1)+tenantSection))
	d.run("reload")
	rcpt, _ := p.dial(fromOffice, "").hand("a@example.org", good, outside)
	matches(t, "shadow mode", rcpt[0], denied)
}

// Transport and TLS policy tables of the daemon in a real delivery, and a
// domain that is another one.
func TestDeliveryByTablesOfTheDaemon(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dns := dnstest.Start(t)
	pair := certtest.New(t, "next.example.com")
	next := startPostfix(t, false, "smtpd_tls_security_level = may", "smtpd_tls_cert_file = "+pair.CertFile, "smtpd_tls_key_file = "+pair.KeyFile,
		"smtpd_tls_received_header = yes", "virtual_mailbox_domains = relay.example", "smtpd_recipient_restrictions = permit")
	hop := fmt.Sprintf("[127.0.0.1]:%d", next.port)
	d := newProviders(t, dns, `
[tables.transport]
source = "texthash:{dir}/transport"
search = "transport"
[tables.tls-policy]
source = "texthash:{dir}/tls_policy"
search = "exact"
[tables.people]
source = "texthash:{dir}/people"
search = "mailbox"
[tables.domains]
map_domains = { "alias.example" = "relay.example" }
exists_in = "people"
`)
	transport := file(t, d.dir, "transport", "relay.example relay:"+hop+"\n")
	policy := file(t, d.dir, "tls_policy", hop+" none\n")
	file(t, d.dir, "people", "bob@relay.example x\n")
	d.start()
	p := startPostfix(t, true, "relay_domains = relay.example", "relay_recipient_maps = "+d.inet("people"),
		"transport_maps = "+d.inet("transport"), "smtp_tls_policy_maps = "+d.inet("tls-policy"), "virtual_alias_maps = "+d.inet("domains"),
		"smtpd_recipient_restrictions = reject_unauth_destination", "smtp_connection_cache_on_demand = no",
		"minimal_backoff_time = 300s", "queue_run_delay = 300s")
	s := p.dial("192.0.2.7", "")
	send := func(to, want string) {
		t.Helper()
		rcpt, data := s.mail("x@sender.test", to)
		matches(t, to, rcpt[0]+" "+data, want)
	}
	answers := func(table, key, want string) {
		t.Helper()
		d.eventually(table+" says "+want, func() bool {
			out, _ := d.try("lookup", table, key)
			return strings.HasPrefix(out, want+"\n")
		})
	}
	send("bob@relay.example", `^250 .* 250 `)
	if m := next.take(); strings.Contains(m, "with ESMTPS id") {
		t.Errorf("the policy says none:\n%s", m)
	}
	edit(t, policy, hop+" encrypt\n")
	answers("tls-policy", hop, "encrypt")
	send("bob@alias.example", `^250 .* 250 `)
	if m := next.take(); !strings.Contains(m, "with ESMTPS id") || !strings.Contains(m, "X-Original-To: bob@relay.example") {
		t.Errorf("the policy says encrypt, and the domain is another:\n%s", m)
	}
	send("nobody@alias.example", `^550 5\.1\.1 .*User unknown`)
	send("nobody@relay.example", `^550 5\.1\.1 .*User unknown`)
	edit(t, policy, hop+" secure match=other.example\n")
	answers("tls-policy", hop, "secure match=other.example")
	send("bob@relay.example", `^250 .* 250 `)
	p.logged("status=deferred \\(Server certificate not (trusted|verified)")
	edit(t, policy, hop+"\n") // broken: what was there stays
	d.eventually("the broken edit", func() bool { return strings.Contains(d.run("status"), "EDIT NOT TAKEN") })
	answers("tls-policy", hop, "secure match=other.example")
	edit(t, policy, hop+" may\n")
	answers("tls-policy", hop, "may")
	// Not by a short backoff time: a message that qmgr takes up before smtp
	// has closed it is "skipped, still being delivered", until qmgr restarts.
	p.command("flush")
	next.take()
	edit(t, transport, "relay.example error:5.7.1 closed today\n")
	answers("transport", "bob@relay.example", "error:5.7.1 closed today")
	expect(t, "where it stands", d.run("lookup", "transport", "bob@relay.example"), transport+":1 ", "(asked for relay.example)")
}

// The lookup door is reloaded, and gets and loses addresses and tables, while
// Postfix asks it without a pause: nobody notices.
func TestReloadOfTheLookupDoorUnderLookUps(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dns := spfServer(t)
	const tables = `
[[provider.list]]
name = "office365"
[tables.recipients]
source = "texthash:{dir}/recipients"
search = "access"
`
	d := newProviders(t, dns, tables)
	file(t, d.dir, "recipients", "b@example.com OK\n")
	d.ready("office365")
	p := startPostfix(t, false, "in_flow_delay = 0", "smtpd_recipient_restrictions = reject_unauth_destination, check_recipient_access "+d.inet("recipients")+
		", check_client_access "+d.unix("provider-office365")+", reject")
	// traffic has it that every recipient is taken.
	stop := traffic(p, 5)
	before := dns.Total()
	for i := range 10 {
		time.Sleep(100 * time.Millisecond)
		text := d.text(dns, tables+"[tables.more]\nsource = \"texthash:{dir}/recipients\"\nsearch = \"exact\"\n")
		if i%2 == 0 {
			text = strings.Replace(d.text(dns, tables), `unix:{dir}/lookup.sock`, `unix:{dir}/second.sock", "unix:{dir}/lookup.sock`, 1)
		}
		d.configure(text)
		d.run("reload")
		if out, err := d.try("lookup", "more", "b@example.com"); (err == nil) != (i%2 == 1) {
			t.Errorf("reload %d: %q, %v", i, out, err)
		}
	}
	asked, strange := stop()
	if len(strange) > 0 || asked < 20 {
		t.Errorf("%d recipients, %d strange replies: %.10q", asked, len(strange), strange)
	}
	if n := dns.Total() - before; n > 0 {
		t.Errorf("reloads asked DNS %d times: the list is there", n)
	}
	expect(t, "history", d.run("provider", "show", "office365"), "changed ", "(refresh): +")
}

// With a socket from systemd the lookup door loses nobody over a restart.
func TestLookupDoorWithSocketActivation(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	dns := dnstest.Start(t)
	d := newProviders(t, dns, "\n[tables.recipients]\nsource = \"texthash:{dir}/recipients\"\nsearch = \"access\"\n")
	file(t, d.dir, "recipients", "b@example.com OK\n")
	path := filepath.Join(d.dir, "lookup.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, 0o666); err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close(); _ = l.Close() }) // the end
	d.extra = []*os.File{f}
	d.start()
	p := startPostfix(t, false, "smtpd_recipient_restrictions = reject_unauth_destination, check_recipient_access "+d.unix("recipients")+", reject")
	stop := traffic(p, 5)
	for range 4 {
		time.Sleep(200 * time.Millisecond)
		d.stop()
		if _, err := os.Stat(path); err != nil {
			t.Fatalf("the daemon has removed systemd's socket: %v", err)
		}
		time.Sleep(200 * time.Millisecond)
		d.start()
	}
	asked, strange := stop()
	if len(strange) > 0 || asked < 20 {
		t.Errorf("%d recipients, %d strange replies: %.10q", asked, len(strange), strange)
	}
	expect(t, "status", d.run("status"), "unix:"+path)
}

// Whatever DNS does at a refresh, the list in use stays.
func TestDNSTroubleKeepsTheList(t *testing.T) {
	t.Parallel()
	requireOnly(t, "postmap")
	dns := spfServer(t)
	d := newProviders(t, dns, `
refresh_timeout = "10s"
max_lookups = 10
[[provider.list]]
name = "google"
[[provider.list.export]]
path = "{dir}/google.cidr"
`)
	d.ready("google")
	list := d.run("provider", "export", "google")
	path := filepath.Join(d.dir, "google.cidr")
	d.eventually("the file", func() bool { _, err := os.Stat(path); return err == nil })
	first, _ := inode(t, path)
	unharmed := func(what string) {
		t.Helper()
		if now := d.run("provider", "export", "google"); now != list {
			t.Errorf("%s: the list is now\n%s", what, now)
		}
		if got, complaint := postmapQ(t, fromGoogle, d.inet("provider-google")); got != "OK" {
			t.Errorf("%s: the lookup door says %q %s", what, got, complaint)
		}
		if now, _ := inode(t, path); now != first {
			t.Errorf("%s: the exported file was written", what)
		}
		if kept, err := os.ReadFile(filepath.Join(d.dir, "providers/google.json")); err != nil || !bytes.Contains(kept, []byte("209.85.128.0/17")) {
			t.Errorf("%s: what is kept on disk does not hold the list: %v", what, err)
		}
	}
	cut := dnstest.Behavior{Raw: func(q []byte) [][]byte {
		r := append([]byte(nil), q...)
		r[2] |= 0x82 // an answer, cut, over TCP too
		return [][]byte{r}
	}}
	for _, tt := range []struct {
		name, at string
		b        dnstest.Behavior
	}{
		{"SERVFAIL", "_spf.google.com", dnstest.ServFail},
		{"SERVFAIL of a part", "_netblocks2.google.com", dnstest.ServFail},
		{"REFUSED", "_netblocks2.google.com", dnstest.Refused},
		{"no answer", "_netblocks2.google.com", dnstest.Drop},
		{"truncated", "_netblocks.google.com", cut},
		{"oversized", "_netblocks3.google.com", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieOversize}}},
		{"half a message", "_spf.google.com", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieBroken}}},
		{"garbage", "_netblocks3.google.com", dnstest.Behavior{Lies: []dnstest.Lie{dnstest.LieGarbage}}},
	} {
		dns.Behave(tt.at, tt.b)
		out, err := d.try("provider", "refresh", "google")
		if err == nil || !strings.Contains(out, "google: FAILED") {
			t.Errorf("%s: %v %s", tt.name, err, out)
		}
		unharmed(tt.name)
		dns.BehaveWell(tt.at)
	}
	expect(t, "failures in a row", d.run("provider", "list"), "8 in a row")
	expect(t, "well again", d.run("provider", "refresh", "google"), "google: UNCHANGED")

	blocks := func(from, to string) string { return strings.Replace(spfRecords["_spf.google.com"], from, to, 1) }
	for _, tt := range []struct{ name, at, text, why string }{
		{"half of the includes are missing", "_netblocks.google.com", "", "broken record"},
		{"the record is gone", "_spf.google.com", "", "it is empty"},
		{"it has shrunk to nothing", "_spf.google.com", "v=spf1 -all", "it is empty"},
		{"it has shrunk", "_spf.google.com", "v=spf1 ip4:209.85.128.0/17 ~all", "more than max_shrink"},
		{"a loop", "_netblocks2.google.com", "v=spf1 include:_spf.google.com ~all", "broken record"},
		{"a longer loop", "_netblocks3.google.com", "v=spf1 redirect=_netblocks.google.com2.example", "broken record"},
		{"the whole Internet", "_netblocks3.google.com", "v=spf1 +all", "networks wider than"},
		{"a very wide network", "_netblocks3.google.com", "v=spf1 ip4:16.0.0.0/5 ~all", "networks wider than"},
		{"private networks", "_netblocks3.google.com", spfRecords["_netblocks3.google.com"][:len(spfRecords["_netblocks3.google.com"])-5] + " ip4:10.0.0.0/24 ip4:127.0.0.0/30 ~all", "private or reserved networks: 10.0.0.0/24, 127.0.0.0/30"},
		{"a syntax error", "_netblocks3.google.com", "v=spf1 ip4:172.217.0.0/99 ~all", "broken record"},
		{"too many look-ups", "_spf.google.com", blocks("include:", strings.Repeat("include:_netblocks.google.com ", 10)+"include:"), "broken record"},
	} {
		spf(dns, tt.at, tt.text)
		out, err := d.try("provider", "refresh", "google")
		if err == nil || !strings.Contains(out, "google: REFUSED") || !strings.Contains(out, tt.why) {
			t.Errorf("%s: %v %s", tt.name, err, out)
		}
		unharmed(tt.name)
		expect(t, tt.name, d.run("status"), "UPDATE REFUSED", tt.why)
		expect(t, tt.name, d.metrics(), `postern_provider_refused{list="google"} 1`)
		spf(dns, tt.at, spfRecords[tt.at])
		expect(t, tt.name+" is over", d.run("provider", "refresh", "google"), "google: UNCHANGED")
	}
	unharmed("all that")
	spf(dns, "_spf.google.com", "v=spf1 -all")
	if out, err := d.try("provider", "refresh", "--dry-run", "google"); err == nil || !strings.Contains(out, "google: REFUSED (dry run: nothing is changed)") {
		t.Errorf("%v %s", err, out)
	}
	if out := d.run("provider", "list"); strings.Contains(out, "REFUSED") {
		t.Errorf("a dry run has left an update: %s", out)
	}
	spf(dns, "_spf.google.com", spfRecords["_spf.google.com"])

	// A restart without DNS has the list at once.
	dns.Stop()
	d.stop()
	d.start()
	unharmed("a restart without DNS")
	out, err := d.try("provider", "refresh", "google")
	if err == nil || !strings.Contains(out, "google: FAILED") {
		t.Errorf("%v %s", err, out)
	}
	unharmed("a refresh without DNS")
	d.kill()
	dns.Restart()
	d.start()

	// An operator who has looked takes what was refused, and only that.
	spf(dns, "_spf.google.com", "v=spf1 ip4:209.85.128.0/17 ~all")
	if out, err = d.try("provider", "refresh", "google"); err == nil {
		t.Error(out)
	}
	_, id, ok := strings.Cut(out, "postern provider accept google ")
	if id, _, _ = strings.Cut(id, "\n"); !ok || id == "" {
		t.Fatal(out)
	}
	expect(t, "diff", d.run("provider", "diff", "google"), "- 64.233.160.0/19", "more than max_shrink", "accept google "+id)
	if out, err := d.try("provider", "accept", "google", "000000000000"); err == nil || !strings.Contains(out, id) {
		t.Errorf("another id: %v %s", err, out)
	}
	unharmed("another id")
	d.stop() // what waits is kept over a restart
	d.start()
	expect(t, "accept", d.run("provider", "accept", "google", id), "google: ACCEPTED")
	if now := d.run("provider", "export", "google"); strings.Contains(now, "64.233.160.0") || !strings.Contains(now, "209.85.128.0/17") {
		t.Errorf("accepted:\n%s", now)
	}
	if now, _ := inode(t, path); now == first {
		t.Error("the exported file was not written")
	}
	expect(t, "history", d.run("provider", "diff", "google"), "no update waits", "(accepted): +0 -", "(refresh): +")
	expect(t, "metrics", d.metrics(), `postern_provider_refused{list="google"} 0`)
	d.stop() // what was accepted is kept, too
	d.start()
	if _, err := d.try("provider", "whois", "64.233.160.1"); err == nil {
		t.Error("the list from before is back")
	}
}

// metrics returns what Prometheus would read.
func (d *daemon) metrics() string {
	d.t.Helper()
	c := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(d.dir, "admin.sock"))
	}}}
	defer c.CloseIdleConnections()
	res, err := c.Get("http://postern/metrics")
	if err != nil {
		d.t.Fatal(err)
	}
	defer res.Body.Close() //nolint:errcheck // read to its end
	b, err := io.ReadAll(res.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return string(b)
}

// A reload keeps lists and their history; what is taken out of the file is gone.
func TestReloadKeepsLists(t *testing.T) {
	t.Parallel()
	requireOnly(t, "postmap")
	dns := spfServer(t)
	const both = "\n[[provider.list]]\nname = \"office365\"\n[[provider.list]]\nname = \"google\"\n"
	d := newProviders(t, dns, both)
	d.ready("office365", "google")
	history := func() string {
		t.Helper()
		var out struct{ History json.RawMessage }
		if err := json.Unmarshal([]byte(d.run("--json", "provider", "show", "google")), &out); err != nil {
			t.Fatal(err)
		}
		return string(out.History)
	}
	was, asked := history(), dns.Total()
	d.configure(d.text(dns, strings.Replace(both, "\"google\"", "\"google\"\nskip = []", 1)))
	d.run("reload")
	if history() != was || dns.Total() != asked {
		t.Errorf("history %s, was %s; %d questions more", history(), was, dns.Total()-asked)
	}
	// Without it there is neither list nor table; another daemon's word for
	// "there is no such table" would let mail past it.
	d.configure(d.text(dns, "\n[[provider.list]]\nname = \"office365\"\n"))
	d.run("reload")
	if out, err := d.try("provider", "whois", fromGoogle); err == nil {
		t.Error(out)
	}
	if out, err := d.try("provider", "show", "google"); err == nil || !strings.Contains(out, `there is no list "google"`) {
		t.Error(out, err)
	}
	if got, complaint := postmapQ(t, fromGoogle, d.inet("provider-google")); got != "" || !strings.Contains(complaint, "temporary error") {
		t.Errorf("%q %s", got, complaint)
	}
	if m := d.metrics(); strings.Contains(m, `list="google"`) || !strings.Contains(m, `list="office365"`) {
		t.Error("metrics of a list that is gone")
	}
	expect(t, "the other", d.run("provider", "whois", fromOffice), "office365: 40.92.0.0/15 by ip4:40.92.0.0/15")
	// When it comes back, it has what was kept.
	d.configure(d.text(dns, both))
	d.run("reload")
	if history() != was {
		t.Errorf("history %s, was %s", history(), was)
	}
	if got, _ := postmapQ(t, fromGoogle, d.inet("provider-google")); got != "OK" {
		t.Error(got)
	}
}

// Of a fleet one node reads the records; all have the list.
func TestFleetReadsOnce(t *testing.T) {
	t.Parallel()
	redis := redistest.Start(t)
	dns := spfServer(t)
	for name := range spfRecords {
		dns.Behave(name, dnstest.Behavior{Delay: 200 * time.Millisecond})
	}
	config := "\n[[provider.list]]\nname = \"office365\"\n[[provider.list]]\nname = \"google\"\n[store]\nkind = \"redis\"\n[store.redis]\naddrs = [\"" + redis.Addr() + "\"]\n"
	nodes := make([]*providerDaemon, 3)
	for i := range nodes {
		nodes[i] = newProviders(t, dns, config)
	}
	for _, d := range nodes[:2] {
		d.start()
	}
	for _, d := range nodes[:2] {
		d.has("office365", "google")
	}
	nodes[2].ready("office365", "google") // later
	for name := range spfRecords {
		if n := dns.Count(name, "TXT"); n != 1 {
			t.Errorf("%s was asked for %d times by three nodes", name, n)
		}
	}
	for i, d := range nodes {
		expect(t, fmt.Sprint("node ", i), d.run("provider", "whois", fromOffice), "office365: 40.92.0.0/15")
		if out := d.run("provider", "export", "google"); out != nodes[0].run("provider", "export", "google") {
			t.Errorf("node %d: %s", i, out)
		}
	}
	// A node that starts without DNS and without anything on disk has it too.
	dns.Stop()
	nodes[2].stop()
	if err := os.RemoveAll(filepath.Join(nodes[2].dir, "providers")); err != nil {
		t.Fatal(err)
	}
	nodes[2].ready("office365", "google")
	// Without Redis a node goes on alone.
	dns.Restart()
	redis.Hang()
	expect(t, "without Redis", nodes[0].run("provider", "refresh", "google"), "google: UNCHANGED")
	redis.Continue()
}

// The shipped examples for relaying do what they say, with Postfix in its
// chroot, and with certificates once their lines are taken in.
func TestRelayExamples(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	shipped := func(name string) string {
		t.Helper()
		b, err := os.ReadFile("../configs/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	dns := spfServer(t)
	sign := dkimSigner(t, dns, "sel", "example.org")
	server, exchange := certtest.New(t, "gw.example.com"), certtest.NewClient(t, "mail.protection.outlook.com")
	letterA, letterB := letter("a@example.org", tenant+tenantA), letter("a@example.org", tenant+tenantB)
	cert := func(text string) string {
		if !strings.Contains(text, "# cert_names") || !strings.Contains(shipped("main.cf.relay.example"), "#smtpd_tls_ask_ccert") {
			t.Error("the examples say nothing of certificates")
		}
		return strings.Replace(text, "# cert_names", "cert_names", 1)
	}
	for _, tt := range []struct {
		name, file string
		edit       func(string) string
		tls        bool
		cases      []relayCase
	}{
		{"Office 365", "relay.office365.toml.example", nil, false, []relayCase{
			{name: "ours", client: fromOffice, from: "a@example.org", message: letterA, rcpt: `^250 `, data: `^250 `},
			{name: "a bounce of ours", client: fromOffice, from: "", message: letterA, rcpt: `^250 `, data: `^250 `},
			{name: "another tenant's", client: fromOffice, from: "a@example.org", message: letterB, rcpt: `^250 `, data: refused},
			{name: "another sender", client: fromOffice, from: "a@example.net", message: letterA, rcpt: denied},
			{name: "from elsewhere", client: stranger, from: "a@example.org", message: letterA, rcpt: denied},
		}},
		{"Office 365 with certificates", "relay.office365.toml.example", cert, true, []relayCase{
			{name: "ours", client: fromOffice, from: "a@example.org", cert: &exchange, message: letterA, rcpt: `^250 `, data: `^250 `},
			{name: "another tenant's", client: fromOffice, from: "a@example.org", cert: &exchange, message: letterB, rcpt: `^250 `, data: refused},
			{name: "without TLS", client: fromOffice, from: "a@example.org", message: letterA, rcpt: denied},
		}},
		{"Google", "relay.google.toml.example", nil, false, []relayCase{
			{name: "ours", client: fromGoogle, from: "a@example.org", message: sign(letter("a@example.org")), rcpt: `^250 `, data: `^250 `},
			{name: "not signed", client: fromGoogle, from: "a@example.org", message: letter("a@example.org"), rcpt: `^250 `, data: refused},
			{name: "another sender", client: fromGoogle, from: "a@example.net", message: sign(letter("a@example.org")), rcpt: denied},
			{name: "from elsewhere", client: stranger, from: "a@example.org", message: sign(letter("a@example.org")), rcpt: denied},
		}},
	} {
		main := strings.ReplaceAll(shipped("main.cf.relay.example"), "\n#smtpd_tls", "\nsmtpd_tls")
		if !tt.tls {
			main = shipped("main.cf.relay.example")
		}
		port := freePort(t)
		p := startPostfix(t, true, append(strings.Split(strings.ReplaceAll(main, ":10041", ":"+port), "\n"),
			"default_transport = discard", "relay_transport = discard", "mynetworks = 127.255.255.255/32",
			"smtpd_tls_cert_file = "+server.CertFile, "smtpd_tls_key_file = "+server.KeyFile, "smtpd_tls_CAfile = "+trust(t, exchange))...)
		if err := os.Mkdir(filepath.Join(p.dir, "queue/postern"), 0o755); err != nil {
			t.Fatal(err)
		}
		text := shipped(tt.file)
		if tt.edit != nil {
			text = tt.edit(text)
		}
		d := newDaemon(t, withDNS("[policy]\nlisten = [\"unix:"+filepath.Join(p.dir, "queue/postern/policy.sock")+"\"]\n[greylist]\nmode = \"off\"\n[dns]\n"+
			strings.Replace(strings.ReplaceAll(text, ":10041", ":"+port), "[provider]\n", "[provider]\nstate_dir = \"{dir}/providers\"\n", 1), dns))
		expect(t, tt.name, d.run("check"), "is good")
		d.start()
		list, _, _ := strings.Cut(strings.TrimPrefix(tt.file, "relay."), ".")
		d.eventually("the list", func() bool {
			out := d.run("provider", "list")
			return strings.HasPrefix(out, list+": ") && !strings.Contains(out, "NO LIST")
		})
		for _, c := range tt.cases {
			c.name = tt.name + ", " + c.name
			p.relays(&c)
		}
		// Mail to us is nobody's business here.
		rcpt, data := p.dial(stranger, "").hand("x@example.com", letter("x@example.com"), "bob@example.org")
		matches(t, tt.name+", mail to us", rcpt[0]+" "+data, `^250 .* 250 `)
		d.stop()
		p.stop()
	}
}

// A client that the relay chain has permitted is neither greylisted nor asked
// for on DNS lists by the inbound chain, whichever door asks that, as far as it
// relays; what one recipient has earned another does not get.
func TestRelayExempts(t *testing.T) {
	t.Parallel()
	require(t, "postfix")
	shipped, err := os.ReadFile("../configs/main.cf.relay.example")
	if err != nil {
		t.Fatal(err)
	}
	const client, greylisted = "192.0.2.9", `^450 4\.2\.0 `
	for _, door := range []string{"policy", "milter"} {
		dns := dnstest.Start(t)
		list(dns, "bl.test")
		listed := func() int { return dns.Count("9.2.0.192.bl.test.", "A") }
		port := freePort(t)
		settings := append(strings.Split(strings.ReplaceAll(string(shipped), ":10041", ":"+port), "\n"),
			"default_transport = discard", "relay_transport = discard", "mynetworks = 127.255.255.255/32")
		envelope := "false"
		if door == "milter" {
			envelope = "true"
			settings = append(settings, "smtpd_recipient_restrictions = permit_mynetworks")
		}
		p := startPostfix(t, true, settings...)
		if err := os.Mkdir(filepath.Join(p.dir, "queue/postern"), 0o755); err != nil {
			t.Fatal(err)
		}
		d := newDaemon(t, withDNS(`
[policy]
listen = ["unix:`+filepath.Join(p.dir, "queue/postern/policy.sock")+`"]
[milter]
listen = ["tcp:127.0.0.1:`+port+`"]
envelope = `+envelope+`
[chains.relay]
purpose = "relay"
checks = ["access"]
[access]
allow = ["inline:192.0.2.0/28 permit"]
[rbl]
lists = ["bl.test"]
reject_at = 1
`, dns))
		d.start()
		rcpt, data := p.dial(client, "").hand("ann@example.net", letter("ann@example.net"), outside)
		matches(t, door+": relayed", rcpt[0]+" "+data, `^250 .* 250 `)
		exempt := d.decided("chain", "inbound", "recipient", outside, "exempt", "rbl,greylist")
		if exempt["exempt_by"] != "chain relay" || listed() != 0 {
			t.Errorf("%s: %v, the DNS list was asked %d times", door, exempt, listed())
		}
		// Several in one packet: to us, to others, to us again.
		s := p.dial(client, "")
		if err := s.PrintfLine("MAIL FROM:<ann@example.net>\r\nRCPT TO:<bob@example.org>\r\nRCPT TO:<%s>\r\nRCPT TO:<eve@example.org>\r\nRCPT TO:<other@elsewhere.example>", outside); err != nil {
			t.Fatal(err)
		}
		s.want(250)
		for i, want := range []string{greylisted, `^250 `, greylisted, `^250 `} {
			code, text, err := s.ReadResponse(0)
			if err != nil {
				t.Fatal(err)
			}
			matches(t, fmt.Sprint(door, ": recipient ", i), fmt.Sprint(code, " ", text), want)
		}
		s.cmd(221, "QUIT")
		if listed() == 0 {
			t.Errorf("%s: mail to us was not asked about on the DNS list", door)
		}
		// A stranger is not relayed for.
		s = p.dial("192.0.2.19", "")
		rcpt, _ = s.hand("ann@example.net", letter("ann@example.net"), outside)
		matches(t, door+": a stranger", rcpt[0], denied)
		s.cmd(221, "QUIT")
		d.stop()
		p.stop()
	}
}
