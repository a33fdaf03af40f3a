package integration

import (
	"errors"
	"fmt"
	"net/smtp"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"postern/internal/dnstest"
	"postern/internal/postfixtest"
	"postern/internal/smtptest"
)

// mailbox is a mail server that keeps what it is given.
type mailbox struct {
	*smtptest.Server
	mu  sync.Mutex
	got []smtptest.Message
}

func startMailbox(t *testing.T, known ...string) *mailbox {
	t.Helper()
	m := &mailbox{Server: smtptest.Start(t)}
	m.Know(known...)
	m.OnMessage(func(msg smtptest.Message) {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.got = append(m.got, msg)
	})
	return m
}

// find returns the message to a recipient.
func (m *mailbox) find(to string) (smtptest.Message, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, msg := range m.got {
		for _, r := range msg.To {
			if r == to {
				return msg, true
			}
		}
	}
	return smtptest.Message{}, false
}

// setUp is one of configs/postfix with all that is around it.
type setUp struct {
	d        *daemon
	p        *postfix
	behind   *mailbox // the mail servers of our domains
	outside  *mailbox // the relay host, or the MX of others
	scanned  *mailbox // what the scanner was given
	reinject string   // where it hands messages back

	looped atomic.Bool // mail goes round
	loop   chan error  // why the scanner could not hand it back any more
}

// end tells of an error, the first.
func end(c chan error, err error) {
	select {
	case c <- err:
	default:
	}
}

// startGateway starts a folder's files as they are, but for addresses, ports
// and paths.
func startGateway(t *testing.T, kind string) *setUp {
	t.Helper()
	folder := filepath.Join("../configs/postfix", kind)
	dns := dnstest.Start(t)
	dns.Add("stranger.example. 60 IN MX 10 mail.stranger.example.", "mail.stranger.example. 60 IN A 203.0.113.7", "mail.example.org. 60 IN A 203.0.113.7")
	for _, zone := range []string{"zen.spamhaus.org", "bl.spamcop.net"} {
		dns.Add("2.0.0.127."+zone+". 60 IN A 127.0.0.2", "66.113.0.203."+zone+". 60 IN A 127.0.0.2")
	}
	g := &setUp{behind: startMailbox(t, "ann@example.com", "bob@sub.branch.example.com"), outside: startMailbox(t), reinject: "127.0.0.1:" + freePort(t), loop: make(chan error, 1)}
	g.outside.AcceptAll(true)
	g.outside.Features("AUTH PLAIN LOGIN")
	g.outside.Answer("AUTH", "235 2.7.0 welcome")
	g.outside.TLS("smarthost.example.net")
	g.scanned = startMailbox(t)
	g.scanned.AcceptAll(true)
	g.scanned.OnMessage(func(m smtptest.Message) {
		g.scanned.mu.Lock()
		g.scanned.got = append(g.scanned.got, m)
		g.scanned.mu.Unlock()
		if err := smtp.SendMail(g.reinject, nil, m.From, m.To, []byte("X-Scanned: clean\r\n"+m.Text)); err != nil {
			if end(g.loop, err); !g.looped.Load() {
				t.Errorf("the scanner cannot hand a message back: %v", err)
			}
		}
	})

	policy, milter := freePort(t), freePort(t)
	var etc string
	replace := func(text string) string {
		pairs := []string{
			"/etc/postfix/", etc + "/", "127.0.0.1:10040", "127.0.0.1:" + policy, "127.0.0.1:10041", "127.0.0.1:" + milter,
			"[mail.internal.example]:25", g.behind.NextHop(), "[10.1.0.5]:25", g.behind.NextHop(),
			"[smarthost.example.net]:587", g.outside.NextHop(), "[127.0.0.1]:10025", g.scanned.NextHop(), "127.0.0.1:10026", g.reinject,
		}
		for i := 0; i < len(pairs); i += 2 {
			text = strings.ReplaceAll(text, pairs[i], pairs[i+1])
		}
		return text
	}
	in := postfixtest.StartFiles(t, func(p *postfixtest.Instance) (main, master string) {
		etc = p.Config
		for _, name := range []string{"relay_domains", "transport", "sasl_passwd"} {
			b, err := os.ReadFile(filepath.Join(folder, name))
			if errors.Is(err, os.ErrNotExist) {
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			text := replace(string(b))
			if name == "transport" { // in place of the MX of others
				text += "outside.example smtp:" + g.outside.NextHop() + "\n"
				if strings.Contains(kind, "relayhost") {
					text = replace(string(b))
				}
			}
			if err := postfixtest.WriteFile(filepath.Join(etc, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		main = replace(slurp(t, filepath.Join(folder, "main.cf"))) + fmt.Sprintf(`
queue_directory = %[1]s/queue
data_directory = %[1]s/data
maillog_file = %[1]s/mail.log
maillog_file_prefixes = %[1]s
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtpd_authorized_xclient_hosts = 127.0.0.0/8
smtpd_peername_lookup = no
disable_dns_lookups = yes
smtpd_tls_security_level = none
smtpd_error_sleep_time = 0
notify_classes =
`, p.Dir)
		master = strings.Replace(slurp(t, filepath.Join(folder, "master.cf")), "\nsmtp      inet", fmt.Sprintf("\n127.0.0.1:%d inet", p.Port), 1)
		return lastOf(main), strings.ReplaceAll(replace(master), " y ", " n ")
	})
	g.p = &postfix{in, t, in.Dir, in.Port, in.Config}

	dir := shortDir(t)
	list := filepath.Join(dir, "relay.list")
	if err := os.WriteFile(list, []byte(slurp(t, filepath.Join(folder, "relay.list"))), 0o644); err != nil {
		t.Fatal(err)
	}
	toml := strings.ReplaceAll(replace(slurp(t, filepath.Join(folder, "postern.toml"))), "/etc/postern/relay.list", list)
	g.d = newDaemon(t, toml+"\n[client.sender_unresolved]\n[greylist]\nprofile = \"balanced\"\n[dns]\nservers = [\""+dns.Addr()+"\"]\n[provider]\nstate_dir = \"{dir}/providers\"\n")
	g.d.start()
	return g
}

// lastOf leaves of several settings of one name the last: Postfix warns of the
// others in every process.
func lastOf(main string) string {
	var out []string
	at := map[string]int{}
	for line := range strings.Lines(main) {
		switch {
		case strings.TrimSpace(line) == "" || strings.HasPrefix(strings.TrimSpace(line), "#"):
		case line[0] == ' ' || line[0] == '\t':
			out[len(out)-1] += line
		default:
			name, _, _ := strings.Cut(line, "=")
			name = strings.TrimSpace(name)
			if i, ok := at[name]; ok {
				out[i] = ""
			}
			at[name] = len(out)
			out = append(out, line)
		}
	}
	return strings.Join(out, "")
}

// The set-ups of configs/postfix work as they are.
func TestGateways(t *testing.T) {
	for _, kind := range []string{"direct", "relayhost", "scanner", "scanner-relayhost"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			g := startGateway(t, kind)
			scanner := strings.Contains(kind, "scanner")
			if out, err := g.d.try("postfix", "check", "--config-dir", g.p.config); err != nil || strings.Count(out, "warning ") != 1 || !strings.Contains(out, "peername-lookup") { // of this test
				t.Errorf("what is shipped has faults: %v\n%s", err, out)
			}

			// Incoming: known recipients, with and without sub-domains, at their mail servers.
			stranger := func() *session { return g.p.dial("203.0.113.7", "mail.stranger.example") }
			for _, to := range []string{"ann@example.com", "bob@sub.branch.example.com"} {
				if rcpt, data := stranger().mail("s@stranger.example", to); !strings.HasPrefix(data, "250 ") {
					t.Fatalf("%s: %q %q", to, rcpt, data)
				}
				g.d.eventually("mail to "+to+" is not delivered", func() bool { _, ok := g.behind.find(to); return ok })
				msg, _ := g.behind.find(to)
				if strings.Contains(msg.Text, "X-Scanned: clean") != scanner {
					t.Errorf("%s: the scanner:\n%s", to, msg.Text)
				}
			}
			matches(t, "an unknown recipient", stranger().rcpt("s@stranger.example", "nobody@example.com"), `^450 4\.1\.1 `)
			matches(t, "a domain that only its sub-domains are of", stranger().rcpt("s@stranger.example", "x@branch.example.com"), `^554 5\.7\.1 .*[Rr]elay access denied|^554 5\.7\.1 .*Access denied`)
			matches(t, "a listed client", g.p.dial("203.0.113.66", "bad.stranger.example").rcpt("s@stranger.example", "ann@example.com"), `^554 5\.7\.1 .*zen\.spamhaus\.org.*\[ref `)

			// Outgoing: own networks, and whom relay.list permits; nobody else.
			for client, name := range map[string]string{"10.1.0.9": "pc.example.org", "192.0.2.10": "", "198.51.100.3": "", "203.0.113.20": "relay.partner.example", "203.0.113.21": "deep.in.partner.example"} {
				to := "x" + strings.ReplaceAll(client, ".", "-") + "@outside.example"
				if rcpt, data := g.p.dial(client, name).mail("ann@example.com", to); !strings.HasPrefix(data, "250 ") {
					t.Errorf("%s %s may not relay: %q %q", client, name, rcpt, data)
					continue
				}
				g.d.eventually("mail from "+client+" is not delivered", func() bool { _, ok := g.outside.find(to); return ok })
				if msg, _ := g.outside.find(to); strings.Contains(msg.Text, "X-Scanned: clean") != scanner {
					t.Errorf("%s: the scanner:\n%s", to, msg.Text)
				}
			}
			if strings.Contains(kind, "relayhost") != (g.outside.Count("AUTH") > 0) {
				t.Errorf("%d logins at the relay host", g.outside.Count("AUTH"))
			}
			matches(t, "a stranger who wants to relay", stranger().rcpt("s@stranger.example", "x@outside.example"), `^554 5\.7\.1 `)
			matches(t, "a stranger with our sender", stranger().rcpt("ann@example.com", "x@outside.example"), `^554 5\.7\.1 `)
			matches(t, "to friends by a stranger", stranger().rcpt("s@stranger.example", "x@mail.friends.example"), `^250 `)

			// The loop that must not be: a mail server behind us that hands mail back.
			ended := make(chan error, 1)
			g.behind.OnMessage(func(m smtptest.Message) {
				g.behind.mu.Lock()
				g.behind.got = append(g.behind.got, m)
				g.behind.mu.Unlock()
				if err := smtp.SendMail(g.p.addr(), nil, m.From, m.To, []byte("Received: by behind\r\n"+m.Text)); err != nil {
					end(ended, err)
				}
			})
			g.looped.Store(true)
			before := len(g.behind.messages())
			if _, data := stranger().mail("s@stranger.example", "ann@example.com"); !strings.HasPrefix(data, "250 ") {
				t.Fatal(data)
			}
			select {
			case err := <-g.loop:
				matches(t, "the end of the loop", err.Error(), `too many hops`)
			case err := <-ended:
				matches(t, "the end of the loop", err.Error(), `too many hops`)
			case <-time.After(patience):
				t.Error("nothing ends the loop")
			}
			if n := len(g.behind.messages()) - before; n > 60 {
				t.Errorf("it went round %d times", n)
			}
		})
	}
}

func (m *mailbox) messages() []smtptest.Message {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.got
}
