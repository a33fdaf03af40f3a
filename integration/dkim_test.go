package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/emersion/go-msgauth/dkim"

	"postern/internal/dnstest"
)

const dkimConfig = `
hostname = "mx.example.com"
[dns]
timeout = "1s"
attempts = 1
servfail_ttl = "1s"
negative_ttl = "1s"
[milter]
listen = ["unix:{dir}/milter.sock"]
[chains.inbound]
checks = ["access"]
[dkim]
mode = "enforce"
`

// signing is a daemon that signs for example.com.
type signing struct {
	*daemon
	dns *dnstest.Server
}

// published is a record that `postern dkim dns` shows.
type published struct {
	Name, Record, Selector string
}

// newSigning makes keys as an administrator does, one for each set of
// arguments of `postern dkim new`.
func newSigning(t *testing.T, config string, keys ...string) *signing {
	t.Helper()
	d := newDaemon(t, "")
	s := &signing{d, dnstest.Start(t)}
	var b strings.Builder
	b.WriteString(config + "\n[[dkim.domain]]\ndomain = \"example.com\"\n")
	for _, args := range keys {
		var k struct{ Selector, File string }
		s.json(&k, append(strings.Fields("dkim new example.com"), strings.Fields(args)...)...)
		fmt.Fprintf(&b, "[[dkim.domain.key]]\nselector = %q\nfile = %q\n", k.Selector, k.File)
	}
	d.configure(withDNS(b.String(), s.dns))
	return s
}

// publish puts the records of all keys into the DNS.
func (s *signing) publish() {
	s.t.Helper()
	for _, k := range s.records() {
		s.publishOne(k)
	}
}

func (s *signing) publishOne(k published) {
	s.t.Helper()
	text := k.Record
	var parts []string
	for len(text) > 255 {
		parts, text = append(parts, `"`+text[:255]+`"`), text[255:]
	}
	s.dns.Add(k.Name + ". 1 IN TXT " + strings.Join(append(parts, `"`+text+`"`), " "))
}

func (s *signing) records() (keys []published) {
	s.t.Helper()
	s.json(&keys, "dkim", "dns")
	return keys
}

func (s *signing) json(v any, args ...string) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(s.run(append(args, "--json")...)), v); err != nil {
		s.t.Fatal(err)
	}
}

// verified returns the selectors of the signatures of a message as it was
// delivered, which must all be good.
func (s *signing) verified(what, message string) (selectors []string) {
	s.t.Helper()
	records := map[string]string{}
	for _, k := range s.records() {
		records[k.Name] = k.Record
	}
	var mu sync.Mutex // signatures are verified side by side
	var asked []string
	got, err := dkim.VerifyWithOptions(strings.NewReader(strings.ReplaceAll(message, "\n", "\r\n")), &dkim.VerifyOptions{LookupTXT: func(name string) ([]string, error) {
		mu.Lock()
		defer mu.Unlock()
		asked = append(asked, name)
		return []string{records[name]}, nil
	}})
	if err != nil {
		s.t.Fatalf("%s: %v\n%s", what, err, message)
	}
	for _, v := range got {
		if v.Err != nil {
			s.t.Errorf("%s: %v\n%s", what, v.Err, message)
		}
	}
	for _, name := range asked {
		selector, _, _ := strings.Cut(name, ".")
		selectors = append(selectors, selector)
	}
	slices.Sort(selectors)
	return selectors
}

// want fails the test unless a message has the good signatures of these
// selectors and no other.
func (s *signing) want(what, message string, selectors ...string) {
	s.t.Helper()
	got := s.verified(what, message)
	header, _, _ := strings.Cut(message, "\n\n")
	if strings.Join(got, " ") != strings.Join(selectors, " ") || strings.Count(header, "DKIM-Signature:") != len(selectors) {
		s.t.Errorf("%s: signed by %v, want %v\n%s", what, got, selectors, message)
	}
}

// Mail of users is signed once, behind all that changes it, whatever way it
// takes; mail of strangers that claims the domain is not.
func TestDKIM(t *testing.T) {
	t.Parallel()
	s := newSigning(t, dkimConfig+`
[[headers.checks]]
table = "regexp:{dir}/header_checks"
`, "--selector s1", "--selector e1 --ed25519")
	s.put("header_checks", "/^Subject: ([^[].*)/ REPLACE Subject: [ours] $1\n/^X-Secret:/ IGNORE\n/^X-Desk:/ REPLACE Reply-To: <desk@example.com>\n")
	s.publish()
	s.start()
	// Behind the content filter, which is another Postfix here.
	inner := startPostfix(t, false, s.milters("tempfail"), boxes)
	p := startPostfix(t, false, s.milters("tempfail"), fmt.Sprintf("content_filter = smtp:[127.0.0.1]:%d", inner.Port),
		strings.Replace(s.milters("tempfail"), "smtpd_milters", "non_smtpd_milters", 1), "internal_mail_filter_classes = bounce")
	user := p.dial("192.0.2.7 LOGIN=ann", "")
	send := func(s *session, message string, to string) string {
		_, data := s.hand("box@example.com", message, to)
		return data
	}

	matches(t, "a user", send(user, letter("ann@example.com", "To: bob@example.net", "X-Secret: 1", "X-Desk: 1"), "box@example.com"), `^250 `)
	got := inner.takeFrom("box")
	s.want("a user", got, "e1", "s1")
	expect(t, "a user", got, "Subject: [ours] test\n", "Reply-To: <desk@example.com>\n", "h=From:From:Reply-To:Subject:Date:To:Message-ID;")
	if strings.Contains(got, "X-Secret") {
		t.Errorf("the rules have not run:\n%s", got)
	}

	odd := letter("ann@sub.example.com", "Subject:no space", "X-Long: "+strings.Repeat("word ", 300), "Content-Transfer-Encoding: 8bit") + "gr\u00fc\u00dfe \xff \t\r\n" + strings.Repeat("x", 900) + "\r\n..\r\n\r\n\r\n"
	matches(t, "odd", send(user, odd, "box@example.com"), `^250 `)
	s.want("odd", inner.takeFrom("box"), "e1", "s1")

	stranger := p.dial("203.0.113.9", "")
	matches(t, "a stranger", send(stranger, letter("ann@example.com"), "box@example.com"), `^250 `)
	s.want("a stranger", inner.takeFrom("box"))
	matches(t, "a stranger behind names", send(stranger, letter("ann@example.com", "Received: from [127.0.0.1] by mx.example.com with ESMTPSA; Fri"), "box@example.com"), `^250 `)
	s.want("a stranger behind names", inner.takeFrom("box"))

	cmd := exec.Command("sendmail", "-C", p.config, "-f", "root@example.com", "box@example.com")
	cmd.Stdin = strings.NewReader("From: root@example.com\nSubject: cron\n\nlocal\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sendmail: %v %s", err, out)
	}
	s.want("local pickup", inner.takeFrom("box"), "e1", "s1")

	matches(t, "a user", send(user, letter("ann@example.com"), "bad@example.com"), `^250 `)
	got = p.takeFrom("box")
	expect(t, "a bounce", got, "MAILER-DAEMON@mx.example.com")
	s.want("a bounce", got, "e1", "s1")

	expect(t, "metrics", s.metrics(), `postern_dkim_messages_total{result="already-signed"} `, `postern_dkim_signatures_total{domain="example.com",result="signed",selector="s1"} `)
	expect(t, "status", s.run("status"), "dkim      example.com s1 (RSA 2048): signs, its record is good")
	expect(t, "check", s.run("dkim", "check", "example.com"), "s1  RSA 2048  published  signs", "e1  Ed25519   published  signs")
}

// A key takes over at a reload when its record is good, and not before; while
// that is not so mail goes out with the older one.
func TestDKIMRotation(t *testing.T) {
	t.Parallel()
	s := newSigning(t, dkimConfig+"check_interval = \"1s\"\n", "--selector s1")
	s.publish()
	s.start()
	p := startPostfix(t, false, s.milters("tempfail"), boxes)
	user := p.dial("192.0.2.7 LOGIN=ann", "")
	send := func() string {
		_, data := user.hand("box@example.com", letter("ann@example.com"), "box@example.com")
		matches(t, "a user", data, `^250 `)
		return p.takeFrom("box")
	}
	s.want("before", send(), "s1")

	var k struct{ Selector, File string }
	s.json(&k, "dkim", "new", "example.com", "--selector", "s2", "--dir", filepath.Join(s.dir, "dkim"))
	before, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	s.configure(string(before) + fmt.Sprintf("[[dkim.domain.key]]\nselector = %q\nfile = %q\nfrom = \"2026-01-01\"\n", k.Selector, k.File))
	s.run("reload")
	s.says("a key is not used: its record is not good", `"selector":"s2"`)
	s.want("its record is missing", send(), "s1")
	out, err := s.try("dkim", "check")
	if err == nil {
		t.Errorf("check:\n%s", out)
	}
	expect(t, "check", out, "s2  RSA 2048  missing", "FAULT s2: there is no record; it does not sign")
	expect(t, "status", s.run("status"), "DOES NOT SIGN, its record is not good: there is no record")

	s.publish()
	s.eventually("the new key", func() bool {
		_, err := s.try("dkim", "check")
		return err == nil
	})
	s.want("after", send(), "s2")
	s.says("a key is used again: its record is good", `"selector":"s2"`)

	// Revoked by mistake.
	s.dns.Remove("s2._domainkey.example.com")
	s.dns.Add(`s2._domainkey.example.com. 1 IN TXT "v=DKIM1; p="`)
	s.eventually("the old key", func() bool {
		out, err := s.try("dkim", "check")
		return err != nil && strings.Contains(out, "revoked")
	})
	s.want("revoked", send(), "s1")

	// What is known stays while the DNS is down.
	s.dns.Stop()
	out, _ = s.try("dkim", "check")
	expect(t, "the DNS is down", out, "the DNS did not answer")
	s.want("the DNS is down", send(), "s1")
}

// In every form, whatever Postfix makes of the message on its way: the very
// octets of fields as it writes them, and those that rules write.
func TestDKIMForms(t *testing.T) {
	t.Parallel()
	s := newSigning(t, dkimConfig+`
canonicalization = "relaxed/relaxed"
headers = ["From", "Subject", "To", "X-*", "Reply-To"]
oversign = ["From", "Subject", "Reply-To"]
expire = "7d"
[[headers.checks]]
table = "regexp:{dir}/header_checks"
`, "--selector s1", "--selector e1 --ed25519")
	s.put("header_checks", "/^X-Prepend:/ PREPEND X-New:no blank\n/^X-Replace:/ REPLACE x-replaced:   three blanks  \n/^X-Fold: (.*)/ REPLACE X-Fold: $1 $1 $1 $1\n/^X-Gone/ IGNORE\n")
	s.publish()
	s.start()
	p := startPostfix(t, false, s.milters("tempfail"), boxes, strings.Replace(s.milters("tempfail"), "smtpd_milters", "non_smtpd_milters", 1))
	before, err := os.ReadFile(s.config)
	if err != nil {
		t.Fatal(err)
	}
	odd := []string{
		"From:ann@example.com\r\n\r\n",
		"From:  <ann@example.com> \r\nSubject:\r\nTO: a\r\nTo:b\r\n\r\nno last line end",
		"X-Prepend: 1\r\nX-Gone: 2\r\nFrom: =?utf-8?q?Ann?=\r\n\t <ann@example.com>\r\nX-Replace: 3\r\nX-Fold: " + strings.Repeat("word ", 50) + "\r\n  and  more \r\nX-Gone-Too: 4\r\n" +
			"Subject:\r\n folded at once\t\r\n\tand   again\r\nX-Empty:\r\nX-Blank: \r\nX-8bit: gr\xfc\xdfe \u00fc\r\nReply-To:\tann@example.com\r\n\r\n" +
			" leading\r\n\ttab \t \r\ntrailing  \r\n..dots\r\n\r\nbare \xa0 8bit \xff\r\n\r\n\r\n",
		"From: ann@example.com\r\nSubject: " + strings.Repeat("x", 900) + "\r\n\r\n" + strings.Repeat("line  of text \t\r\n", 5000),
		"From: ann@example.com\r\n\r\n\r\n\r\n\r\n",
	}
	for _, canon := range []string{"relaxed/relaxed", "relaxed/simple", "simple/relaxed", "simple/simple"} {
		s.configure(strings.Replace(string(before), "relaxed/relaxed", canon, 1))
		s.run("reload")
		user := p.dial("192.0.2.7 LOGIN=ann", "")
		for i, text := range odd {
			what := fmt.Sprintf("%s, message %d", canon, i)
			_, data := user.hand("box@example.com", text, "box@example.com")
			matches(t, what, data, `^250 `)
			s.want(what, p.takeFrom("box"), "e1", "s1")
			cmd := exec.Command("sendmail", "-i", "-C", p.config, "-f", "root@example.com", "box@example.com")
			cmd.Stdin = strings.NewReader(strings.ReplaceAll(text, "\r\n", "\n"))
			if out, err := cmd.CombinedOutput(); err != nil {
				t.Fatalf("sendmail: %v %s", err, out)
			}
			s.want(what+", by sendmail", p.takeFrom("box"), "e1", "s1")
		}
		user.cmd(221, "QUIT")
	}
	p.noComplaint()
}

// opendkim's tables as they are.
func TestDKIMTables(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "")
	s := &signing{d, dnstest.Start(t)}
	d.put("key.table", "# keys\nexample example.com:mail:{dir}/dkim/example.com.mail.pem\n")
	table := "*@example.com example # ours\n*@domain-ab.example example\n"
	d.put("signing.table", table)
	s.run("dkim", "new", "example.com", "--selector", "mail")
	d.put("key.table", fmt.Sprintf("# keys\nexample example.com:mail:%s/dkim/example.com.mail.pem\n", d.dir))
	d.configure(withDNS(dkimConfig+"keytable = \"file:{dir}/key.table\"\nsigningtable = \"refile:{dir}/signing.table\"\n", s.dns))
	s.publish()
	s.start()
	p := startPostfix(t, false, s.milters("tempfail"), boxes)
	user := p.dial("192.0.2.7 LOGIN=ann", "")
	for author, want := range map[string]string{"ann@example.com": "mail", "ann@worsedomain-ab.example": "", "ann@sub.example.com": ""} {
		_, data := user.hand("box@example.com", letter(author), "box@example.com")
		matches(t, author, data, `^250 `)
		s.want(author, p.takeFrom("box"), strings.Fields(want)...)
	}
	d.put("signing.table", table+"*@example.net nothing\n")
	out, err := s.try("reload")
	if err == nil {
		t.Error("a table with a fault")
	}
	expect(t, "reload", out, d.dir+`/signing.table:3:15: the key table has no key "nothing"`)
}
