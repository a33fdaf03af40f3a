package integration

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"postern/internal/dnstest"
)

// content is a configuration with the milter door and without delays of the
// policy door.
const content = `
hostname = "mx.example.com"
[milter]
listen = ["unix:{dir}/milter.sock"]
[greylist]
mode = "off"
`

// milters is the line for main.cf, with what Postfix does without the daemon.
func (d *daemon) milters(byDefault string) string {
	return fmt.Sprintf("smtpd_milters = { unix:%s/milter.sock, connect_timeout=5s, command_timeout=30s, default_action=%s }", d.dir, byDefault)
}

// put writes a file into the daemon's directory, as editors do.
func (d *daemon) put(name, text string) string {
	d.t.Helper()
	path := filepath.Join(d.dir, name)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		d.t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		d.t.Fatal(err)
	}
	return path
}

// lines returns the daemon's log lines with a message and a text in them.
func (d *daemon) lines(msg string, parts ...string) []string {
	var out []string
	for line := range strings.Lines(d.log.String()) {
		if strings.Contains(line, `"msg":"`+msg+`"`) && !slices.ContainsFunc(parts, func(p string) bool { return !strings.Contains(line, p) }) {
			out = append(out, line)
		}
	}
	return out
}

// says waits for a log line with a message and a text in it.
func (d *daemon) says(msg string, parts ...string) {
	d.t.Helper()
	d.eventually("log line "+msg+" "+strings.Join(parts, " "), func() bool { return len(d.lines(msg, parts...)) > 0 })
}

// boxes are mailboxes that messages are delivered to, each in its own directory.
const boxes = "virtual_mailbox_maps = inline:{box@example.com=box/ nobody@example.com=nobody/ other@example.com=other/ bcc@example.com=bcc/ box@example.net=net/}\n" +
	"virtual_mailbox_domains = example.com example.net"

// takeFrom waits for one message in a mailbox and takes it away. Nothing else
// may be in it.
func (p *postfix) takeFrom(box string) string {
	p.t.Helper()
	var files []string
	deadline := time.Now().Add(patience)
	for len(files) == 0 {
		if time.Now().After(deadline) {
			p.t.Fatalf("nothing came into %s\n%s", box, p.log())
		}
		time.Sleep(10 * time.Millisecond)
		files, _ = filepath.Glob(filepath.Join(p.dir, "mail", box, "new/*")) // the pattern is good
	}
	b, err := os.ReadFile(files[0])
	if err != nil || len(files) != 1 {
		p.t.Fatalf("%d messages in %s: %v", len(files), box, err)
	}
	if err := os.Remove(files[0]); err != nil {
		p.t.Fatal(err)
	}
	return string(b)
}

// empty waits until all that was accepted has been delivered, and fails the
// test when something has come into one of the mailboxes.
func (p *postfix) empty(boxes ...string) {
	p.t.Helper()
	deadline := time.Now().Add(patience)
	for len(p.queue("incoming"))+len(p.queue("active"))+len(p.queue("maildrop")) > 0 {
		if time.Now().After(deadline) {
			p.t.Fatalf("the queue does not become empty\n%s", p.log())
		}
		time.Sleep(10 * time.Millisecond)
	}
	for _, box := range boxes {
		if files, _ := filepath.Glob(filepath.Join(p.dir, "mail", box, "new/*")); len(files) > 0 {
			p.t.Errorf("%d messages have come into %s", len(files), box)
		}
	}
}

// only returns the lines of a delivered header that the sender or the rules
// have written, in order, without those that every message of eml has.
func only(t *testing.T, message string) string {
	t.Helper()
	header, _ := received(t, message)
	var out []string
	for _, f := range header {
		switch f.Name {
		case "From", "Date", "Message-Id", "Received":
		default:
			out = append(out, f.Name+":"+f.Value)
		}
	}
	return strings.Join(out, "\n")
}

// Every action has its effect, one message after the other in one session.
func TestHeadersActions(t *testing.T) {
	t.Parallel()
	next := startPostfix(t, false, "smtpd_recipient_restrictions = permit") // where FILTER sends to
	d := newDaemon(t, content+`
[headers]
filter_marker = "X-Postern-Filter"
[[headers.checks]]
table = "pcre:{dir}/header_checks"
[[headers.checks]]
table = "regexp:{dir}/body_checks"
kind = "body"
`)
	d.put("header_checks", fmt.Sprintf(`
/^Subject: reject$/ REJECT
/^Subject: refuse (.*)$/ REJECT 5.7.9 not "$1", 100%% sure
/^Subject: later$/ REJECT 4.7.0 not now
/^Subject: warn$/ WARN seen (a) warning
/^Subject: info$/ INFO seen information
/^X-Quiet:/ DUNNO
/^X-Fine:/ OK
/^(X-Quiet|X-Fine|X-Loud):/ IGNORE
/^Subject: gone$/ DISCARD into the sea
/^Subject: wait$/ HOLD look at it
/^X-Ignored:/ IGNORE
/^X-Stripped:/ STRIP not wanted
/^X-Tag: (.*)$/ PREPEND X-Before: $1
/^X-Old: (.*)$/ REPLACE X-New: $1 again
/^Subject: elsewhere$/ REDIRECT other@example.com
/^Subject: copy$/ BCC bcc@example.com
/^Subject: filter$/ FILTER smtp:[127.0.0.1]:%d
/^X-Pass:/ PASS no more
/^X-After:/ IGNORE
`, next.port))
	d.put("body_checks", `
/^body reject$/ REJECT 5.7.8 no such words
/^body later$/ REJECT 4.7.8 not these words
/^body gone$/ DISCARD
/^body wait$/ HOLD
/^body ignore/ IGNORE
/^body strip/ STRIP why
/^body old (.*)$/ REPLACE body new $1
/^body tag$/ PREPEND >> tagged
/^body warn$/ WARN words
/^body elsewhere$/ REDIRECT other@example.com
/^body copy$/ BCC bcc@example.com
`)
	d.start()
	lines := d.run("headers", "filter-lines")
	marker := d.put("filter", lines)
	if err := os.Chmod(marker, 0o644); err != nil {
		t.Fatal(err)
	}
	p := startPostfix(t, false, d.milters("accept"), boxes, "milter_header_checks = regexp:"+marker)
	s := p.dial("192.0.2.7", "mail.example.org")
	say := func(subject string, more ...string) string { // a header field, or a line of the body
		header, body := "Subject: "+subject+"\n", ""
		for _, m := range more {
			if strings.HasPrefix(m, "body") {
				body += m + "\n"
			} else {
				header += m + "\n"
			}
		}
		return "From: ann@example.org\nDate: Thu, 1 Jan 1970 00:00:00 +0000\nMessage-Id: <1@example.org>\n" + header + "\n" + body + "end\n"
	}
	send := func(subject string, more ...string) string {
		t.Helper()
		return s.send(say(subject, more...), "box@example.com")
	}
	const ref = ` \[ref [0-9A-Z]{5}-[0-9A-Z]{5}\]$`

	// Refusals: the reply and the log line have one reference.
	for _, tt := range []struct{ subject, body, reply, reason string }{
		{"reject", "", `^550 5\.7\.1 message content rejected`, "header-rejected"},
		{"refuse this", "", `^550 5\.7\.9 not "this", 100% sure`, "header-rejected"},
		{"later", "", `^451 4\.7\.0 not now`, "header-deferred"},
		{"x", "body reject", `^550 5\.7\.8 no such words`, "body-rejected"},
		{"x", "body later", `^451 4\.7\.8 not these words`, "body-deferred"},
	} {
		reply := send(tt.subject, tt.body)
		matches(t, tt.subject+tt.body, reply, tt.reply+ref)
		m := regexp.MustCompile(ref[:len(ref)-1]).FindString(reply)
		m = strings.TrimSuffix(strings.TrimPrefix(m, " [ref "), "]")
		line := d.decided("ref", m)
		if line["reason"] != tt.reason || line["check"] != "headers" || line["client"] != "192.0.2.7" || line["recipient"] != "box@example.com" || line["queue_id"] == "" {
			t.Errorf("%s%s: log line %v", tt.subject, tt.body, line)
		}
		expect(t, "explain "+m, d.run("explain", m), tt.reason, "ann@example.org")
		p.logged(`milter-reject: END-OF-MESSAGE .*` + regexp.QuoteMeta(m))
	}
	// Thrown away, or held.
	for _, m := range []string{send("gone"), send("x", "body gone")} {
		matches(t, "discard", m, `^250 `)
	}
	p.logged(`(?s)milter-discard: END-OF-MESSAGE.*milter-discard: END-OF-MESSAGE`)
	d.decided("action", "discard", "reason", "header-discarded")
	d.decided("action", "discard", "reason", "body-discarded")
	for n, m := range []string{"", "body wait"} {
		matches(t, "hold", send([]string{"wait", "x"}[n], m), `^250 `)
		if held := p.queue("hold"); len(held) != n+1 {
			t.Errorf("on hold: %v", held)
		}
	}
	d.decided("action", "hold", "reason", "header-held")
	p.logged(`milter-hold: END-OF-MESSAGE`)
	p.empty("box", "other", "bcc")

	// Edits.
	for _, tt := range []struct {
		name   string
		more   []string
		header string
		body   string
	}{
		{"warn", nil, "Subject: warn", "end\n"},
		{"info", nil, "Subject: info", "end\n"},
		{"dunno", []string{"X-Quiet: 1", "X-Fine: 2", "X-Loud: 3"}, "Subject: dunno\nX-Quiet: 1\nX-Fine: 2", "end\n"},
		{"ignore", []string{"X-Ignored: 1", "X-A: 1", "X-Stripped: 1", "X-Ignored: 2"}, "Subject: ignore\nX-A: 1", "end\n"},
		{"prepend", []string{"X-A: 1", "X-Tag: 1", "X-Tag: 2\n\tfolded"}, "Subject: prepend\nX-A: 1\nX-Before: 1\nX-Tag: 1\nX-Before: 2\n\tfolded\nX-Tag: 2\n\tfolded", "end\n"},
		{"replace", []string{"X-Old: 1", "X-Old: 2", "X-New: 3"}, "Subject: replace\nX-New: 1 again\nX-New: 2 again\nX-New: 3", "end\n"},
		{"pass", []string{"X-Ignored: 1", "X-Pass: 1", "X-Ignored: 2", "X-After: 1", "body reject"}, "Subject: pass\nX-Pass: 1\nX-Ignored: 2\nX-After: 1", "body reject\nend\n"},
		{"body edits", []string{"body ignore 1", "body strip 2", "body old 3", "body tag", "body warn"}, "Subject: body edits", "body new 3\n>> tagged\nbody tag\nbody warn\nend\n"},
		{"nothing", []string{"X-A: " + strings.Repeat("folded\n ", 20) + "end"}, "Subject: nothing\nX-A: " + strings.Repeat("folded\n ", 20) + "end", "end\n"},
	} {
		matches(t, tt.name, send(tt.name, tt.more...), `^250 `)
		message := p.takeFrom("box")
		if _, body := received(t, message); only(t, message) != tt.header || body != tt.body {
			t.Errorf("%s: got\n%s\nbody %q\nwant\n%s\nbody %q", tt.name, only(t, message), body, tt.header, tt.body)
		}
	}
	// Recipients.
	for _, tt := range []struct {
		subject, body string
		boxes         []string
	}{
		{"elsewhere", "", []string{"other"}},
		{"x", "body elsewhere", []string{"other"}},
		{"copy", "", []string{"box", "bcc"}},
		{"copy", "body copy", []string{"box", "bcc"}},
	} {
		matches(t, tt.subject+tt.body, send(tt.subject, tt.body), `^250 `)
		for _, box := range tt.boxes {
			p.takeFrom(box)
		}
		p.empty("box", "other", "bcc")
	}
	// FILTER: through the marker and Postfix's milter_header_checks. What a
	// sender writes there is taken out and has no effect.
	matches(t, "filter", send("filter", "X-Postern-Filter: smtp:[192.0.2.99]:25"), `^250 `)
	next.logged(`to=<box@example\.com>`)
	message := next.take()
	if got := strings.Count(message, "X-Postern-Filter:"); got != 1 || !strings.Contains(message, fmt.Sprintf("\nX-Postern-Filter: smtp:[127.0.0.1]:%d\n", next.port)) {
		t.Errorf("%d markers:\n%s", got, message)
	}
	matches(t, "a sender's marker", send("x", fmt.Sprintf("X-Postern-Filter: smtp:[127.0.0.1]:%d", next.port)), `^250 `)
	if message := p.takeFrom("box"); strings.Contains(message, "X-Postern-Filter") {
		t.Errorf("a sender's marker stays:\n%s", message)
	}

	// What each rule has done is in the log, by file and line.
	for action, line := range map[string]string{
		"reject": "header_checks:2", "warn": "header_checks:5", "info": "header_checks:6", "discard": "header_checks:10", "hold": "header_checks:11", "strip": "header_checks:13",
		"prepend": "header_checks:14", "replace": "header_checks:15", "redirect": "header_checks:16", "bcc": "header_checks:17", "filter": "header_checks:18", "pass": "header_checks:19",
	} {
		d.says("header check", `"action":"`+action+`"`, line+`"`, `"queue_id":"`)
	}
	if got := d.lines("header check", `"action":"ignore"`); len(got) > 0 {
		t.Errorf("IGNORE is logged: %v", got)
	}
	hits := d.run("headers", "hits")
	for _, want := range []string{`(?m)^1 +\d+s +\d+s +header +\S+/header_checks:7 +/\^X-Quiet:/ +DUNNO$`, `(?m)^3 .*header_checks:12 `, `(?m)^0 +- .*header_checks:20 `, `(?m)^1 .* body +\S+/body_checks:2 `} {
		if !regexp.MustCompile(want).MatchString(hits) {
			t.Errorf("hits do not match %s:\n%s", want, hits)
		}
	}
	p.noComplaint()
}

// What Postfix's own header_checks cannot do: rules for some recipients, over
// several headers, on decoded text, and rules that are only counted.
func TestHeadersBeyondPostfix(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, content+`
[headers]
[[headers.checks]]
name = "net"
table = "pcre:{dir}/net"
domains = ["example.net"]
[[headers.checks]]
name = "only-net"
table = "pcre:{dir}/only_net"
domains = ["example.net"]
domains_match = "all"
[[headers.checks]]
name = "decoded"
table = "pcre:{dir}/decoded"
decoded = true
[[headers.checks]]
name = "quiet"
table = "pcre:{dir}/quiet"
mode = "shadow"
[[headers.checks]]
name = "rules"
table = "pcre:{dir}/rules"
[[headers.rules]]
name = "invoice"
all = ['/^Subject:.*invoice/', '/^Reply-To:.*@freemail\.example/']
none = ['/^List-Id:/']
action = "REJECT 5.7.1 No such invoices"
[[headers.rules]]
name = "mark"
all = ['/^X-Mailer:.*bulk/', '/^Precedence:/']
action = "PREPEND X-Bulk: yes"
domains = ["example.com"]
[[headers.rules]]
name = "silent"
all = ['/^Subject:/', '/^X-A:/']
action = "REJECT"
mode = "shadow"
`)
	d.put("net", "/^X-Net:/ REPLACE X-Net: for some\n")
	d.put("only_net", "/^X-Only:/ IGNORE\n")
	d.put("decoded", "/^Subject: gr\u00fc\u00dfe aus (.*)$/ PREPEND X-From-Where: $1\n/^Content-Disposition:.*name=\"r\u00e9sum\u00e9\\.exe\"/ REJECT not such files\n")
	d.put("quiet", "/^Subject:/ REJECT\n/^X-A:/ IGNORE\n")
	d.put("rules", "/^X-B:/ SHADOW REJECT never\n/^X-B: yes/ IGNORE\n")
	d.start()
	p := startPostfix(t, false, d.milters("accept"), boxes)
	s := p.dial("192.0.2.7", "mail.example.org")
	send := func(to []string, fields string) string {
		t.Helper()
		return s.send("From: ann@example.org\nDate: Thu, 1 Jan 1970 00:00:00 +0000\nMessage-Id: <1@example.org>\n"+fields+"\nend\n", to...)
	}
	com, net, both := []string{"box@example.com"}, []string{"box@example.net"}, []string{"box@example.com", "box@example.net"}
	for _, tt := range []struct {
		name, fields string
		to           []string
		want         string // the header, or the reply when it refuses
	}{
		{"domains, not ours", "X-Net: 1\nX-Only: 1\n", com, "X-Net: 1\nX-Only: 1"},
		{"domains", "X-Net: 1\nX-Only: 1\n", net, "X-Net: for some"},
		{"domains, one of two", "X-Net: 1\nX-Only: 1\n", both, "X-Net: for some\nX-Only: 1"},
		{"encoded in quoted-printable", "Subject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?=\n =?utf-8?Q?_aus_Wien?=\n", com, "X-From-Where: Wien\nSubject: =?utf-8?Q?Gr=C3=BC=C3=9Fe?=\n =?utf-8?Q?_aus_Wien?="},
		{"encoded in base64, another charset", "Subject: =?iso-8859-1?B?R3L832UgYXVzIEv2bG4=?=\n", com, "X-From-Where: K\u00f6ln\nSubject: =?iso-8859-1?B?R3L832UgYXVzIEv2bG4=?="},
		{"encoded parameter", "Content-Disposition: attachment;\n filename*=utf-8''r%C3%A9sum%C3%A9.exe\n", com, `^550 5\.7\.1 not such files \[ref `},
		{"all of several", "Subject: your invoice\nReply-To: x@freemail.example\n", com, `^550 5\.7\.1 No such invoices \[ref `},
		{"one is missing", "Subject: your invoice\nReply-To: x@example.org\n", com, "Subject: your invoice\nReply-To: x@example.org"},
		{"none of", "List-Id: <x>\nSubject: your invoice\nReply-To: x@freemail.example\n", com, "List-Id: <x>\nSubject: your invoice\nReply-To: x@freemail.example"},
		{"several headers, a mark", "Precedence: bulk\nX-Mailer: bulkmailer\n", com, "X-Bulk: yes\nPrecedence: bulk\nX-Mailer: bulkmailer"},
		{"several headers, others' mail", "Precedence: bulk\nX-Mailer: bulkmailer\n", net, "Precedence: bulk\nX-Mailer: bulkmailer"},
		{"shadow", "Subject: x\nX-A: 1\nX-B: yes\nX-B: no\n", com, "Subject: x\nX-A: 1\nX-B: no"},
	} {
		reply := send(tt.to, tt.fields)
		if strings.HasPrefix(tt.want, "^") {
			matches(t, tt.name, reply, tt.want)
			continue
		}
		matches(t, tt.name, reply, `^250 `)
		for _, to := range tt.to {
			message := p.takeFrom(map[string]string{"box@example.com": "box", "box@example.net": "net"}[to])
			if got := only(t, message); got != tt.want {
				t.Errorf("%s: got\n%s\nwant\n%s", tt.name, got, tt.want)
			}
		}
	}
	p.empty("box", "net")
	for _, rule := range []string{"/quiet:1", "/quiet:2", "/rules:1", "silent"} {
		d.says("a header rule in shadow mode matches", rule+`"`)
	}
	hits := d.run("headers", "hits")
	matches(t, "hits", hits, `(?m)^1 .* rule +silent .*\(shadow\) REJECT$`)
	matches(t, "hits", hits, `(?m)^1 .*/quiet:2 .*\(shadow\) IGNORE$`)
	matches(t, "hits", hits, `(?m)^2 .*/rules:1 .*SHADOW REJECT never$`)
	matches(t, "hits", hits, `(?m)^1 .* rule +invoice `)

	// The whole section in shadow mode, and then the whole daemon.
	for _, mode := range []string{"[headers]\nmode = \"shadow\"", "[headers]"} {
		config := content
		if mode == "[headers]" {
			config = "mode = \"shadow\"\n" + content
		}
		d.configure(config + mode + `
filter_marker = "X-Marker"
[[headers.checks]]
table = "pcre:{dir}/all"
[[headers.checks]]
table = "pcre:{dir}/lines"
kind = "body"
`)
		d.put("lines", "/^end/ REPLACE e n d\n")
		d.put("all", "/^Subject: a/ REJECT no\n/^Subject: b/ DISCARD\n/^Subject: c/ HOLD\n/^Subject: d/ REDIRECT other@example.com\n/^Subject: e/ BCC bcc@example.com\n"+
			"/^Subject: f/ FILTER smtp:[192.0.2.1]\n/^Subject: g/ IGNORE\n/^Subject: h/ REPLACE X-H: yes\n/^Subject: i/ PREPEND X-I: yes\n")
		d.run("reload")
		s = p.dial("192.0.2.7", "mail.example.org") // a new session: bodies are asked for from now on
		for _, subject := range "abcdefghi" {
			fields := fmt.Sprintf("Subject: %c\nX-Marker: mine", subject)
			matches(t, "shadow", send(com, fields+"\n"), `^250 `)
			message := p.takeFrom("box")
			if _, body := received(t, message); only(t, message) != fields || body != "end\n" {
				t.Errorf("%s: %c is not as it was:\n%s", mode, subject, message)
			}
		}
		p.empty("other", "bcc")
	}
	matches(t, "hits in shadow mode", d.run("headers", "hits"), `(?m)^2 .*/all:1 `)
	if len(p.queue("hold")) > 0 {
		t.Error("a message is on hold")
	}
	p.noComplaint()
}

// A table is edited while the daemon runs; a broken edit changes nothing.
func TestHeadersEditedLive(t *testing.T) {
	t.Parallel()
	config := content + `
[headers]
reload_interval = "100ms"
[[headers.checks]]
table = "pcre:{dir}/checks"
`
	d := newDaemon(t, config)
	d.put("checks", "/^Subject: one/ REJECT one\n/^X-A:/ IGNORE\n")
	d.start()
	p := startPostfix(t, false, d.milters("tempfail"), boxes)
	s := p.dial("192.0.2.7", "mail.example.org")
	to := "box@example.com"
	matches(t, "at first", s.send(eml("one"), to), `^550 5\.7\.1 one \[ref`)
	matches(t, "at first", s.send(eml("two"), to), `^250 `)

	d.put("checks", "/^Subject: two/ REJECT two\n/^X-A:/ IGNORE\n")
	d.eventually("the edit is in force", func() bool { return strings.HasPrefix(s.send(eml("two"), to), "550 5.7.1 two [ref ") })
	matches(t, "the same session", s.send(eml("one"), to), `^250 `)
	d.put("checks", "/^Subject: two/ REJECT two\n/^X-A:/ PREPEND X-B: [\n/(/ REJECT\n/^Subject: one/ REJECT\n")
	d.eventually("the broken edit is seen", func() bool { return strings.Contains(d.run("status"), "EDIT NOT TAKEN") })
	expect(t, "status", d.run("status"), d.dir+"/checks (header): 2 rules", "/checks:3:", "milter    unix:"+d.dir+"/milter.sock; 1 of 4096 sessions")
	matches(t, "after a broken edit", s.send(eml("two"), to), `^550 5\.7\.1 two \[ref `)
	matches(t, "after a broken edit", s.send(eml("one"), to), `^250 `)
	if out, err := d.try("reload"); err == nil || !strings.Contains(out, "/checks:3:") {
		t.Errorf("a reload with the broken table: %v\n%s", err, out)
	}
	matches(t, "after a refused reload", s.send(eml("two"), to), `^550 5\.7\.1 two \[ref `)
	hits := d.run("headers", "hits")
	matches(t, "hits move over", hits, `(?m)^[3-9] .*Subject: two`)
	// A table that is gone is a broken edit too.
	if err := os.Remove(filepath.Join(d.dir, "checks")); err != nil {
		t.Fatal(err)
	}
	d.eventually("the table is gone", func() bool { return strings.Contains(d.run("status"), "no such file") })
	matches(t, "without the file", s.send(eml("two"), to), `^550 5\.7\.1 two \[ref `)
	d.put("checks", "/^Subject: three/ REJECT three\n")
	d.eventually("the corrected table is in force", func() bool { return strings.HasPrefix(s.send(eml("three"), to), "550 5.7.1 three [ref ") })
	if out := d.run("status"); strings.Contains(out, "NOT TAKEN") {
		t.Errorf("status after it was corrected:\n%s", out)
	}
	// Without [headers] new sessions are not looked at; those under way keep on.
	d.configure(content)
	d.run("reload")
	matches(t, "no rules any more", s.send(eml("three"), to), `^250 `)
	d.configure(config)
	d.run("reload")
	matches(t, "rules again, same session", s.send(eml("three"), to), `^550 5\.7\.1 three \[ref`)
	p.noComplaint()
}

// doubleDoor is one daemon at both doors: greylisting, DNS lists, header rules.
const doubleDoor = `
hostname = "mx.example.com"
[milter]
listen = ["unix:{dir}/milter.sock"]
[greylist]
delay = "1s"
known_after = 0
[rbl]
lists = ["bl.example*3"]
ask_private = true
[[headers.checks]]
table = "pcre:{dir}/checks"
[[headers.checks]]
table = "pcre:{dir}/body"
kind = "body"
`

// The policy door decides about the envelope, the milter door hands out what
// goes into the message; look-ups begin when the client connects.
func TestOneDecisionOverTwoDoors(t *testing.T) {
	t.Parallel()
	dns := dnstest.Start(t)
	list(dns, "bl.example")
	dns.Add("66.2.0.192.bl.example. 300 IN A 127.0.0.2")
	d := newDaemon(t, withDNS(doubleDoor, dns))
	d.put("checks", "/^X-A:/ REPLACE X-A: seen\n/^Subject: wait/ HOLD\n/^X-Greylist:/ IGNORE\n/^Subject: no/ REJECT\n")
	d.put("body", "/^never$/ REJECT\n")
	d.start()
	d.eventually("the list passes its test", func() bool { return strings.Contains(d.run("status"), "bl.example: on") })
	p := startPostfix(t, false, append(restrictions("unix:"+d.socket()), d.milters("tempfail"), boxes)...)

	// The query is made before the client has said who it writes to.
	s := p.dial("192.0.2.7", "mail.example.org")
	const name = "7.2.0.192.bl.example."
	d.eventually("the look-up at connect", func() bool { return dns.Count(name, "A") > 0 })
	if got := d.decisions(); len(got) > 0 {
		t.Errorf("decided before RCPT: %v", got)
	}
	message := "X-Greylist: forged\nX-A: 1\n" + eml("x")
	matches(t, "first contact", s.send(message, "box@example.com"), `^450 4\.2\.0 .*Greylisted`)
	if n := dns.Count(name, "A"); n != 1 {
		t.Errorf("%d queries for %s, want one: at connect", n, name)
	}
	time.Sleep(1100 * time.Millisecond)
	matches(t, "retry", s.send(message, "box@example.com"), `^250 `)
	got := p.takeFrom("box")
	if n := strings.Count(got, "X-Greylist:"); n != 1 || !strings.Contains(got, "X-Greylist: delayed ") || !strings.Contains(got, "\nX-A: seen\n") {
		t.Errorf("%d X-Greylist fields in\n%s", n, got)
	}
	// The milter has put it there: no PREPEND was answered.
	if strings.Contains(d.run("explain", "--recent", "20"), "prepend") || strings.Contains(p.log(), "PREPEND") {
		t.Errorf("it came by PREPEND\n%s", p.log())
	}
	pre := regexp.MustCompile(`(?s)^.*?X-Greylist: delayed .*?Received: from `)
	if !pre.MatchString(got) {
		t.Errorf("not above Postfix's Received:\n%s", got)
	}
	// One field for several recipients, and none for a triplet that has passed.
	to := []string{"box@example.com", "other@example.com"}
	matches(t, "known triplet", s.send(message, to[0]), `^250 `)
	if got := p.takeFrom("box"); strings.Contains(got, "X-Greylist") {
		t.Errorf("a message that was not delayed:\n%s", got)
	}
	s.mail("carl@example.org", to...)
	time.Sleep(1100 * time.Millisecond)
	rcpt, data := s.mail("carl@example.org", to...)
	matches(t, "two recipients", strings.Join(rcpt, " ")+data, `^250 .*250 .*250 `)
	for _, box := range []string{"box", "other"} {
		if got := p.takeFrom(box); strings.Count(got, "X-Greylist: delayed ") != 1 {
			t.Errorf("%s:\n%s", box, got)
		}
	}
	// Held by a rule: the field is there too.
	s.mail("dora@example.org", to[0])
	time.Sleep(1100 * time.Millisecond)
	s.cmd(250, "MAIL FROM:<dora@example.org>")
	s.cmd(250, "RCPT TO:<box@example.com>")
	s.cmd(354, "DATA")
	s.cmd(250, "Subject: wait\r\n\r\nx\r\n.")
	held := p.queue("hold")
	if len(held) != 1 {
		t.Fatalf("on hold: %v", held)
	}
	out, err := exec.Command("postcat", "-c", p.config, "-q", filepath.Base(held[0])).CombinedOutput()
	if err != nil || strings.Count(string(out), "X-Greylist: delayed ") != 1 {
		t.Errorf("on hold: %v %s", err, out)
	}
	// A null sender is judged at DATA, where the field must not get lost.
	s.mail("", to[0])
	time.Sleep(1100 * time.Millisecond)
	_, data = s.mail("", to[0])
	matches(t, "a bounce", data, `^250 `)
	if got := p.takeFrom("box"); strings.Count(got, "X-Greylist: delayed ") != 1 {
		t.Errorf("a bounce:\n%s", got)
	}
	// A refusal at RCPT and one of the content, of one client.
	rcpt, _ = p.dial("192.0.2.66", "").mail("a@example.org", to[0])
	matches(t, "listed", rcpt[0], `^554 5\.7\.1 .*blocked using bl\.example`)
	matches(t, "content", s.send(eml("no"), to[0]), `^550 5\.7\.1 message content rejected \[ref`)
	// Without the milter the policy door hands the field out.
	q := startPostfix(t, false, append(restrictions("unix:"+d.socket()), boxes)...)
	s = q.dial("192.0.2.7", "mail.example.org")
	s.mail("emil@example.org", to[0])
	time.Sleep(1100 * time.Millisecond)
	s.mail("emil@example.org", to[0])
	if got := q.takeFrom("box"); strings.Count(got, "X-Greylist: delayed ") != 1 {
		t.Errorf("policy door alone:\n%s", got)
	}
	p.noComplaint()
}

// The milter judges the envelope by itself, without a policy service.
func TestMilterAloneJudgesTheEnvelope(t *testing.T) {
	t.Parallel()
	dns := dnstest.Start(t)
	list(dns, "bl.example")
	dns.Add("66.2.0.192.bl.example. 300 IN A 127.0.0.2")
	d := newDaemon(t, withDNS(strings.Replace(doubleDoor, "[milter]\n", "[access]\ndeny = [\"inline:to:nobody@example.com 550 5.1.1 Nobody lives here\"]\n[milter]\nenvelope = true\n", 1), dns))
	d.put("checks", "/^X-A:/ REPLACE X-A: seen\n")
	d.put("body", "/^never$/ REJECT\n")
	d.start()
	d.eventually("the list passes its test", func() bool { return strings.Contains(d.run("status"), "bl.example: on") })
	p := startPostfix(t, false, d.milters("tempfail"), boxes)
	s := p.dial("192.0.2.7", "mail.example.org")
	to := []string{"box@example.com", "nobody@example.com", "other@example.com"}
	rcpt, _ := s.mail("ann@example.org", to...)
	for i, want := range []string{`^450 4\.2\.0 Greylisted, please try again in 1 seconds \[ref `, `^550 5\.1\.1 Nobody lives here \[ref `, `^450 4\.2\.0 Greylisted`} {
		matches(t, to[i], rcpt[i], want)
	}
	line := d.decided("reason", "greylist-first-contact", "recipient", "box@example.com")
	if line["stage"] != "rcpt" || line["client"] != "192.0.2.7" || line["client_name"] != "mail.example.org" || line["helo"] != "mail.example.org" {
		t.Errorf("log line: %v", line)
	}
	expect(t, "explain by reference", d.run("explain", fmt.Sprint(line["ref"])), "ann@example.org", "greylist-first-contact")
	// Another system's callout ends before DATA; a bounce is judged there.
	s.cmd(250, "MAIL FROM:<>")
	s.cmd(250, "RCPT TO:<box@example.com>")
	s.cmd(250, "RSET")
	rcpt, data := s.mail("", to[0])
	matches(t, "a bounce", rcpt[0]+" "+data, `^250 .* 450 4\.2\.0 Greylisted`)
	time.Sleep(1100 * time.Millisecond)
	rcpt, data = s.mail("ann@example.org", to...)
	for i, want := range []string{`^250`, `^550 5\.1\.1`, `^250`} {
		matches(t, to[i]+" again", rcpt[i], want)
	}
	matches(t, "the message", data, `^250`)
	for _, box := range []string{"box", "other"} {
		if got := p.takeFrom(box); strings.Count(got, "X-Greylist: delayed ") != 1 {
			t.Errorf("%s:\n%s", box, got)
		}
	}
	_, data = s.mail("", to[0])
	matches(t, "a bounce that comes back", data, `^250`)
	if got := p.takeFrom("box"); strings.Count(got, "X-Greylist: delayed ") != 1 {
		t.Errorf("a bounce:\n%s", got)
	}
	matches(t, "header rules", s.send("X-A: 1\n"+eml("x"), to[0]), `^250`)
	if got := p.takeFrom("box"); !strings.Contains(got, "\nX-A: seen\n") || strings.Contains(got, "X-Greylist") {
		t.Errorf("header rules:\n%s", got)
	}
	rcpt, _ = p.dial("192.0.2.66", "").mail("a@example.org", to[0])
	matches(t, "listed", rcpt[0], `^554 5\.7\.1 Service unavailable; Client host \[192\.0\.2\.66\] blocked using bl\.example.* \[ref `)
	p.noComplaint()
}

// The greeting is kept back from those who are not known good.
func TestGreetingPause(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, `
hostname = "mx.example.com"
[milter]
listen = ["unix:{dir}/milter.sock"]
greet_pause = "1m"
greet_pause_max = 2
greet_pause_except = ["127.0.0.0/8", "192.0.2.99/32"]
[access]
allow = ["inline:192.0.2.8 a customer"]
[greylist]
delay = "1s"
known_after = 1
known_age = "0s"
count_every = "0s"
`)
	d.start()
	p := startPostfix(t, false, append(restrictions("unix:"+d.socket()), d.milters("accept"), boxes)...)
	// A client that greylisting knows.
	c := d.dial()
	known := sample("203.0.113.20", "a@example.org", "box@example.com").With("client_name", "mail.example.org")
	expect(t, "first contact", c.MustAsk(t, known), "DEFER_IF_PERMIT")
	time.Sleep(1100 * time.Millisecond)
	expect(t, "retry", c.MustAsk(t, known.With("instance", "2")), "PREPEND X-Greylist")
	// Postfix tells the milter of the client again when XCLIENT has named it.
	pause := func(client string) *session {
		s := p.dial("", "")
		name := "[UNAVAILABLE]"
		if client == "203.0.113.20" {
			name = "mail.example.org" // whose own mail has earned it
		}
		if err := s.PrintfLine("XCLIENT ADDR=%s NAME=%s", client, name); err != nil {
			t.Fatal(err)
		}
		return s
	}
	paused := func(n int) {
		t.Helper()
		d.eventually(fmt.Sprint(n, " clients wait"), func() bool { return strings.Contains(d.run("--json", "status"), fmt.Sprintf(`"paused": %d`, n)) })
	}
	pause("192.0.2.7")
	paused(1)
	for _, client := range []string{"192.0.2.8", "192.0.2.99", "203.0.113.20"} {
		s := pause(client)
		s.want(220)
		paused(1) // the other one still waits
		s.cmd(250, "EHLO mail.example.org")
		want := `^250 `
		if client == "192.0.2.99" {
			want = `^450 4\.2\.0 .*Greylisted`
		}
		if matches(t, client, s.send(eml("x"), "box@example.com"), want); want == `^250 ` {
			p.takeFrom("box")
		}
	}
	pause("192.0.2.9")
	paused(2)
	s := pause("192.0.2.10") // one more than may wait
	s.want(220)
	paused(2)
	// Nobody has to wait for the end of the pause when the daemon stops.
	d.stop()
}

// messages sends messages, one in each SMTP session and several at a time,
// until stop is called, which returns what was answered that no rule has said;
// count tells how many were taken, and how many had to wait. It sends no more
// than Postfix delivers: who waits for the first message that was treated
// otherwise waits for all before it.
func messages(p *postfix, clients int) (count func() (taken, deferred int), stop func() (strange []string)) {
	var mu sync.Mutex
	var wg sync.WaitGroup
	var strange []string
	var done atomic.Bool
	taken, deferred := 0, 0
	for i := range clients {
		wg.Go(func() {
			for n := 0; !done.Load(); n++ {
				for behind := 50; !done.Load() && behind >= 50; {
					mu.Lock()
					behind = taken - len(p.files())
					mu.Unlock()
					if behind >= 50 {
						time.Sleep(10 * time.Millisecond)
					}
				}
				a, d, err := twoMessages(p.addr(), i*100_000+n)
				mu.Lock()
				taken, deferred = taken+a, deferred+d
				if err != nil {
					strange = append(strange, err.Error())
				}
				mu.Unlock()
			}
		})
	}
	count = func() (int, int) {
		mu.Lock()
		defer mu.Unlock()
		return taken, deferred
	}
	return count, func() []string {
		done.Store(true)
		wg.Wait()
		return strange
	}
}

// stamped is a configuration whose rules put a field on every message.
const stamped = content + `
[[headers.checks]]
table = "pcre:{dir}/checks"
[[headers.checks]]
table = "pcre:{dir}/body"
kind = "body"
`

func (d *daemon) stamp(text string) {
	d.t.Helper()
	d.put("checks", "/^Subject:/ PREPEND X-Seen: "+text+"\n")
	d.put("body", "/^body$/ REPLACE body seen\n")
}

// A reload costs no message anything: each is looked at by the old rules or
// by the new.
func TestMilterReloadUnderTraffic(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, stamped)
	d.stamp("0")
	d.start()
	p := startPostfix(t, false, append(restrictions("unix:"+d.socket()), d.milters("tempfail"))...)
	count, stop := messages(p, 4)
	for i := range 15 {
		d.stamp(fmt.Sprint(i + 1))
		d.configure(strings.Replace(stamped, "[milter]\n", fmt.Sprintf("[milter]\nmax_headers = %d\n", 50_000+i), 1))
		if i%2 == 0 {
			d.hangUp()
		} else {
			d.run("reload")
		}
		before, _ := count()
		d.eventually("messages after a reload", func() bool { n, _ := count(); return n > before+5 })
	}
	d.run("reload") // a signal may be on its way still
	before, _ := count()
	d.eventually("messages after the last reload", func() bool { n, _ := count(); return n > before+5 })
	strange := stop()
	taken, deferred := count()
	if len(strange) > 0 || deferred > 0 {
		t.Errorf("%d taken, %d deferred, %d strange: %.10q", taken, deferred, len(strange), strange)
	}
	texts := map[string]int{}
	for _, m := range p.messages(taken) {
		if strings.Count(m, "\nX-Seen: ") != 1 || !strings.HasSuffix(m, "\nbody seen\n") {
			t.Fatalf("not looked at whole:\n%s", m)
		}
		_, rest, _ := strings.Cut(m, "\nX-Seen: ")
		text, _, _ := strings.Cut(rest, "\n")
		texts[text]++
	}
	if texts["15"] == 0 || len(texts) < 5 {
		t.Errorf("messages by text: %v", texts)
	}
	d.stop()
	p.noComplaint()
}

// inherit opens unix sockets in the daemon's directory and hands them to it,
// as systemd does.
func (d *daemon) inherit(names ...string) {
	d.t.Helper()
	for _, name := range names {
		path := filepath.Join(d.dir, name)
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			d.t.Fatal(err)
		}
		f, err := l.File()
		if err != nil {
			d.t.Fatal(err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			d.t.Fatal(err)
		}
		d.t.Cleanup(func() { _ = f.Close(); _ = l.Close() }) // the end
		d.extra = append(d.extra, f)
	}
}

// systemd holds the sockets of both doors while the daemon restarts: sessions
// wait in them, and no message has to come again.
func TestMilterRestartUnderTraffic(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, stamped)
	d.stamp("yes")
	d.inherit("policy.sock", "milter.sock")
	d.start()
	p := startPostfix(t, false, append(restrictions("unix:"+d.socket()), d.milters("tempfail"))...)
	count, stop := messages(p, 4)
	for range 4 {
		before, _ := count()
		d.eventually("messages after a restart", func() bool { n, _ := count(); return n > before+10 })
		d.stop()
		for _, name := range []string{"policy.sock", "milter.sock"} {
			if _, err := os.Stat(filepath.Join(d.dir, name)); err != nil {
				t.Fatalf("the daemon has removed systemd's socket: %v", err)
			}
		}
		time.Sleep(300 * time.Millisecond)
		d.start()
	}
	strange := stop()
	taken, deferred := count()
	if len(strange) > 0 || deferred > 0 {
		t.Errorf("%d taken, %d deferred, %d strange: %.10q", taken, deferred, len(strange), strange)
	}
	for _, m := range p.messages(taken) {
		if strings.Count(m, "\nX-Seen: yes\n") != 1 || !strings.HasSuffix(m, "\nbody seen\n") {
			t.Fatalf("not looked at whole:\n%s", m)
		}
	}
	if out := d.log.String(); strings.Contains(out, `"level":"warn"`) || strings.Contains(out, `"level":"error"`) {
		t.Error("the daemon warns")
	}
	p.noComplaint()
}

// A message that is under way when the daemon is told to stop is finished,
// though Postfix has questions for the policy door yet.
func TestMilterMessageUnderWayAtStop(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, strings.Replace(stamped, "[milter]\n", "[milter]\ndrain = \"1m\"\n", 1))
	d.stamp("yes")
	d.inherit("policy.sock", "milter.sock")
	d.start()
	p := startPostfix(t, false, append(restrictions("unix:"+d.socket()), d.milters("tempfail"))...)
	s := p.dial("192.0.2.7", "mail.example.org")
	s.cmd(250, "MAIL FROM:<ann@example.org>")
	if err := d.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	d.eventually("it stops", func() bool { return strings.Contains(d.log.String(), `"msg":"postern stops"`) })
	s.cmd(250, "RCPT TO:<box@example.com>")
	s.cmd(354, "DATA")
	s.cmd(250, "Subject: x\r\n\r\nbody\r\n.")
	if err := <-d.done; err != nil {
		t.Errorf("the daemon ended badly: %v", err)
	}
	d.cmd = nil
	if m := p.take(); strings.Count(m, "\nX-Seen: yes\n") != 1 || !strings.HasSuffix(m, "\nbody seen\n") {
		t.Errorf("not looked at whole:\n%s", m)
	}
	d.decided("stage", "rcpt", "action", "continue")
	if strings.Contains(d.log.String(), `"level":"warn"`) {
		t.Error("the daemon warns")
	}
	p.noComplaint()
}

// The daemon is killed under traffic, and comes back: Postfix goes by what
// main.cf says, and nothing is refused for good.
func TestMilterKilledUnderTraffic(t *testing.T) {
	for _, action := range []string{"accept", "tempfail"} {
		t.Run(action, func(t *testing.T) {
			t.Parallel()
			d := newDaemon(t, stamped)
			d.stamp("yes")
			d.start()
			// smtpd tries a closed policy door once more after a second.
			p := startPostfix(t, false, append(restrictions("unix:"+d.socket()), "smtpd_policy_service_try_limit = 1", d.milters(action))...)
			count, stop := messages(p, 3)
			looked := map[string]bool{} // by file, whether it was looked at by the daemon
			seen := func() (n int) {
				for _, f := range p.files() {
					if _, ok := looked[f]; !ok {
						m, err := os.ReadFile(f)
						if err != nil {
							t.Fatal(err)
						}
						looked[f] = strings.Contains(string(m), "\nX-Seen: yes\n")
					}
					if looked[f] {
						n++
					}
				}
				return n
			}
			for range 2 {
				before := seen()
				d.eventually("messages with the daemon", func() bool { return seen() > before+10 })
				d.kill()
				a, b := count()
				d.eventually("messages without it", func() bool {
					taken, deferred := count()
					if action == "accept" {
						return taken > a+10
					}
					return deferred > b+10
				})
				d.start()
			}
			before := seen()
			d.eventually("messages with it again", func() bool { return seen() > before+10 })
			strange := stop()
			taken, deferred := count()
			if len(strange) > 0 || action == "accept" && deferred > 0 {
				t.Errorf("%d taken, %d deferred, strange: %.10q", taken, deferred, strange)
			}
			for _, m := range p.messages(taken) {
				looked := strings.Contains(m, "\nX-Seen: yes\n")
				if action == "tempfail" && !looked || looked != strings.HasSuffix(m, "\nbody seen\n") {
					t.Fatalf("looked at: %v\n%s", looked, m)
				}
			}
			t.Logf("%d taken, %d deferred", taken, deferred)
		})
	}
}

// shipped reads a file of configs/ and takes the comment signs from its lines
// that begin so.
func shipped(t *testing.T, name string, lines ...string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../configs", name))
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	for _, l := range lines {
		if !strings.Contains(text, "\n"+l) {
			t.Fatalf("%s has no line that begins with %q", name, l)
		}
		text = strings.ReplaceAll(text, "\n"+l, "\n"+strings.TrimLeft(l, "# "))
	}
	return text
}

// The shipped examples together: postern.toml with the milter and the header
// rules, the lines of main.cf.example, all of Postfix in its chroot.
func TestHeadersExample(t *testing.T) {
	t.Parallel()
	main := ""
	for line := range strings.Lines(shipped(t, "main.cf.example", "#smtpd_milters = ", "#non_smtpd_milters = ")) {
		if strings.Contains(line, "smtpd_milters = ") {
			main += line
		}
	}
	p := startPostfix(t, true, main, boxes)
	queue := filepath.Join(p.dir, "queue/postern")
	if err := os.Mkdir(queue, 0o755); err != nil {
		t.Fatal(err)
	}
	rules, err := filepath.Abs("../configs")
	if err != nil {
		t.Fatal(err)
	}
	text := shipped(t, "postern.toml", "#[milter]", "#[headers]", "#[admin]", "#[store]", "# [[headers.checks]]", `# table = "pcre:`, `# listen = ["unix:/var/spool/postfix/postern/milter.sock`,
		`#listen = "unix:/run`, `#path = "/var/lib`)
	d := newDaemon(t, "")
	d.configure(strings.NewReplacer("mode = \"shadow\"\n", "", "/etc/postern/", rules+"/", "/var/spool/postfix/postern", queue, "/run/postern", d.dir, "/var/lib/postern", d.dir,
		"tcp:127.0.0.1:10040", "tcp:127.0.0.1:0").Replace(text))
	d.start()

	s := p.dial("192.0.2.7", "mail.example.org")
	send := func(fields, body string) string {
		return s.send("From: ann@example.org\nDate: Thu, 1 Jan 1970 00:00:00 +0000\nMessage-Id: <1@example.org>\n"+fields+"\n"+body, "box@example.com")
	}
	part := "MIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=x\n"
	for _, tt := range []struct{ name, fields, body, want string }{
		{"inside", "X-Originating-IP: 10.0.0.1\nX-PHP-Originating-Script: 0:x.php\nSubject: x\n", "x\n", "Subject: x"},
		{"not theirs", "X-Spam-Status: No\nX-Virus-Scanned: yes\nX-Greylist: passed\nSubject: x\n", "x\n", "Subject: x"},
		{"a mailer", "X-Mailer: DarkMailer 1\n", "x\n", `^550 5\.7\.1 Mail from this program is not taken here \[ref `},
		{"an old mailer", "X-Mailer: PHPMailer 5.2.9\n", "x\n", "X-Mailer: PHPMailer 5.2.9"},
		{"a subject", "Subject: your crypto giveaway\n", "x\n", `^550 5\.7\.1 "crypto giveaway" is not wanted here \[ref `},
		{"blanks", "Subject:" + strings.Repeat(" ", 210) + "x\n", "x\n", `^550 5\.6\.0 Subject of blanks \[ref `},
		{"an attachment", part, "--x\nContent-Type: application/octet-stream;\n name=\"photo.jpg.exe\"\n\nx\n--x--\n", `^550 5\.7\.1 Attachments of type \.exe are not taken here \[ref `},
		{"a good attachment", part, "--x\nContent-Type: application/pdf;\n name=\"executive.pdf\"\n\nx\n--x--\n", strings.TrimSuffix(part, "\n")},
		{"a list", "List-Unsubscribe: <mailto:x@example.org>\n", "x\n", "X-Bulk: yes\nList-Unsubscribe: <mailto:x@example.org>"},
	} {
		reply := send(tt.fields, tt.body)
		if strings.HasPrefix(tt.want, "^") {
			matches(t, tt.name, reply, tt.want)
			continue
		}
		matches(t, tt.name, reply, `^250 `)
		if got := only(t, p.takeFrom("box")); got != tt.want {
			t.Errorf("%s: got\n%s\nwant\n%s", tt.name, got, tt.want)
		}
	}
	d.says("header check", `"action":"warn"`, "old PHPMailer, known holes")

	// Mail of this host's programs, whose content is looked at too.
	cmd := exec.Command("sendmail", "-C", p.config, "-f", "ann@example.org", "box@example.com")
	cmd.Env = append(os.Environ(), "MAIL_CONFIG="+p.config)
	cmd.Stdin = strings.NewReader("X-Originating-IP: 10.0.0.1\n" + eml("local"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("sendmail: %v\n%s", err, out)
	}
	if got := only(t, p.takeFrom("box")); got != "Subject: local" {
		t.Errorf("local mail:\n%s", got)
	}
	// Without the daemon mail goes on, as the line says.
	d.stop()
	s = p.dial("192.0.2.7", "mail.example.org")
	matches(t, "without the daemon", send("X-Originating-IP: 10.0.0.1\nSubject: x\n", "x\n"), `^250 `)
	if got := only(t, p.takeFrom("box")); !strings.Contains(got, "X-Originating-IP") {
		t.Errorf("without the daemon:\n%s", got)
	}
}

// Large messages and broken ones, with rules for header and body in force.
func TestHeadersLargeMessages(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, content+`
[headers]
body_limit = 0
max_body_edit = 1048576
[[headers.checks]]
table = "pcre:{dir}/checks"
[[headers.checks]]
table = "pcre:{dir}/body"
kind = "body"
`)
	d.put("checks", "/^X-Field-5: 5005$/ IGNORE\n/^X-Field-9: 9999$/ REPLACE X-Field-9: changed\n/^X-Long:.*y$/ PREPEND X-Mark: long\n/^Subject: (a+)+c$/ REJECT\n")
	d.put("body", "/^the last line$/ REJECT found it\n/^change$/ REPLACE changed\n")
	d.start()
	p := startPostfix(t, false, d.milters("tempfail"), boxes, "message_size_limit = 104857600", "virtual_mailbox_limit = 104857600", "mailbox_size_limit = 104857600")
	s := p.dial("192.0.2.7", "mail.example.org")
	to := "box@example.com"
	before := d.resident()
	big := strings.Repeat(strings.Repeat("x", 99)+"\n", 500_000)
	matches(t, "50 MB", s.send(eml("big")+big+"the last line\n", to), `^550 5\.7\.1 found it \[ref `)
	matches(t, "50 MB, a change", s.send(eml("big")+"change\n"+big, to), `^250 `)
	if got := p.takeFrom("box"); !strings.Contains(got, "\nchange\n") || len(got) < 50_000_000 {
		t.Errorf("a body too long to be changed: %d bytes", len(got))
	}
	d.says("the body is too long to be changed")
	if grown := d.resident() - before; grown > 400 { // with the race detector's own
		t.Errorf("it has cost %d MiB", grown)
	}
	matches(t, "a short body", s.send(eml("x")+"change\n", to), `^250 `)
	if got := p.takeFrom("box"); !strings.HasSuffix(got, "\nbody\nchanged\n") {
		t.Errorf("a short body is not changed:\n%s", got)
	}

	var many strings.Builder
	for i := range 10_000 {
		fmt.Fprintf(&many, "X-Field-%d: %d\n", i%10, i)
	}
	matches(t, "10,000 header fields", s.send(many.String()+eml("many"), to), `^250 `)
	want := strings.Replace(strings.Replace(many.String(), "X-Field-5: 5005\n", "", 1), "X-Field-9: 9999\n", "X-Field-9: changed\n", 1)
	if got := only(t, p.takeFrom("box")); got != want+"Subject: many" {
		t.Error("10,000 header fields are not as edited")
	}
	// Postfix cuts a field at 60,000 bytes, at a line's end.
	matches(t, "a field of 100,000 bytes", s.send("X-Long:"+strings.Repeat(" "+strings.Repeat("y", 70)+"\n", 1400)+eml("long"), to), `^250 `)
	if got := only(t, p.takeFrom("box")); !strings.HasPrefix(got, "X-Mark: long\nX-Long: yyy") || len(got) < 50_000 || !strings.HasSuffix(got, "\nSubject: long") {
		t.Errorf("a long field: %d bytes %.40q", len(got), got)
	}
	// A pattern that explodes delays no other message.
	matches(t, "a catastrophe", s.send(eml(strings.Repeat("a", 5000)), to), `^250 `)
	p.takeFrom("box")

	// A client that goes away in the middle of a message.
	gone := p.dial("192.0.2.8", "mail.example.org")
	gone.cmd(250, "MAIL FROM:<ann@example.org>")
	gone.cmd(250, "RCPT TO:<box@example.com>")
	gone.cmd(354, "DATA")
	if err := gone.PrintfLine("Subject: x\r\n\r\nchange\r\n%s", strings.Repeat("x", 100_000)); err != nil {
		t.Fatal(err)
	}
	_ = gone.Close() // in the middle
	p.logged(`lost connection after DATA .*192\.0\.2\.8`)
	matches(t, "afterwards", s.send(eml("x"), to), `^250 `)
	p.takeFrom("box")
	d.eventually("one session is left", func() bool { return strings.Contains(d.run("status"), "; 1 of 4096 sessions") })
	p.noComplaint()
}
