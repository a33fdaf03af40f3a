package integration

import (
	"errors"
	"net/textproto"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/smtptest"
)

// Postfix is set up by `postern postfix setup`, asks then, and is as before
// after `undo`.
func TestPostfixSetup(t *testing.T) {
	t.Parallel()
	port := freePort(t)
	d := newDaemon(t, `hostname = "mx.example.com"
[policy]
listen = ["unix:{dir}/policy.sock", "tcp:127.0.0.1:`+port+`"]
[store]
kind = "memory"
[chains.inbound]
checks = ["greylist"]
[greylist]
profile = "strict"
`)
	d.start()
	p := startPostfix(t, true)
	main := filepath.Join(p.config, "main.cf")
	before := slurp(t, main)
	setup := []string{"postfix", "setup", "--config-dir", p.config, "--server", p.addr(), "--recipient", "box@example.com"}

	out, err := d.try("postfix", "check", "--config-dir", p.config)
	if err == nil {
		t.Error("a Postfix that does not ask is no error")
	}
	expect(t, "check", out, "error    not-asked  smtpd_recipient_restrictions", "fix: check_policy_service { inet:127.0.0.1:"+port+", timeout=25s, default_action=DUNNO }")

	// Without a yes nothing changes.
	out, err = d.try(setup...)
	if err == nil {
		t.Error("it was changed without a yes")
	}
	expect(t, "the question", out, "  + check_policy_service { inet:127.0.0.1:"+port, "[y/N]", "nothing is changed")
	out = d.run(append(setup, "--dry-run")...)
	if slurp(t, main) != before || strings.Contains(out, "[y/N]") {
		t.Error("it was changed")
	}

	out = d.run(append(setup, "--yes")...)
	expect(t, "set up", out, "changed; what was is in "+p.config, "was answered with 450, and postern was asked: it works")
	if reply := p.dial("192.0.2.7", "").rcpt("a@example.org", "box@example.com"); !strings.HasPrefix(reply, "450 ") {
		t.Error(reply)
	}
	if out, err := d.try("postfix", "check", "--config-dir", p.config); err != nil || strings.Contains(out, "not-asked") {
		t.Errorf("%v %s", err, out)
	}
	expect(t, "once more", d.run(append(setup, "--yes")...), "nothing to do")

	// What somebody has changed since is not lost by an undo.
	after := slurp(t, main)
	if err := os.WriteFile(main, []byte(after+"# mine\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err = d.try("postfix", "undo", "--config-dir", p.config)
	if err == nil || slurp(t, main) != after+"# mine\n" {
		t.Error("a change was lost")
	}
	expect(t, "undo", out, "main.cf changed since", "--force")
	expect(t, "undo", d.run("postfix", "undo", "--force", "--config-dir", p.config), "restored from "+p.config)
	if slurp(t, main) != before {
		t.Errorf("it is not as before:\n%s", slurp(t, main))
	}
	d.eventually("Postfix does not ask any more", func() bool {
		return strings.HasPrefix(p.dial("192.0.2.7", "").rcpt("new@example.org", "box@example.com"), "250 ")
	})
	out, err = d.try("postfix", "undo", "--config-dir", p.config)
	if err == nil {
		t.Error("there was more to undo")
	}
	expect(t, "undone", out, "there is no change to take back")

	// What does not work is taken back at once.
	if err := os.WriteFile(main, []byte(before+"smtpd_sender_restrictions = reject\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err = d.try(append(setup, "--yes")...)
	if err == nil || slurp(t, main) != before+"smtpd_sender_restrictions = reject\n" {
		t.Errorf("a setup that does not work has stayed: %s", out)
	}
	expect(t, "taken back", out, "it does not work, all is as before", "Postfix refuses before it asks postern")
	d.stop()
	out, err = d.try(append(setup, "--yes")...)
	if err == nil || slurp(t, main) != before+"smtpd_sender_restrictions = reject\n" {
		t.Error("it was changed for a daemon that does not run")
	}
	expect(t, "no daemon", out, "postern does not answer, nothing is changed")
}

// A finding is what a real Postfix does.
func TestPostfixFindings(t *testing.T) {
	t.Parallel()
	port, milterPort := freePort(t), freePort(t)
	d := newDaemon(t, `hostname = "mx.example.com"
[policy]
listen = ["tcp:127.0.0.1:`+port+`"]
[milter]
listen = ["tcp:127.0.0.1:`+milterPort+`"]
[store]
kind = "memory"
[chains.inbound]
checks = ["access"]
[access]
deny = ["inline:192.0.2.0/24 no"]
`)
	d.start()
	check := func(p *postfix) string {
		out, _ := d.try("postfix", "check", "--config-dir", p.config) // some findings are errors
		return out
	}
	// no-default-action: while postern is away everybody is deferred.
	bad := startPostfix(t, false, "smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service inet:127.0.0.1:"+port)
	good := startPostfix(t, false, "smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service { inet:127.0.0.1:"+port+", timeout=25s, default_action=DUNNO }")
	expect(t, "without a default action", check(bad), "no-default-action")
	if out := check(good); strings.Contains(out, "no-default-action") {
		t.Error(out)
	}
	for _, p := range []*postfix{bad, good} {
		if reply := p.dial("192.0.2.7", "").rcpt("a@example.org", "box@example.com"); !strings.HasPrefix(reply, "554 ") {
			t.Errorf("a denied client reads %s", reply)
		}
	}

	// policy-before-auth-destination: strangers who want to relay come as far as postern.
	early := startPostfix(t, false, "smtpd_relay_restrictions =", "smtpd_recipient_restrictions = check_policy_service { inet:127.0.0.1:"+port+", timeout=25s, default_action=DUNNO }, reject_unauth_destination")
	expect(t, "asked too early", check(early), "error    policy-before-auth-destination")
	if reply := early.dial("192.0.2.7", "").rcpt("a@example.org", "x@elsewhere.example"); !strings.Contains(reply, "[ref ") {
		t.Errorf("postern was not asked: %s", reply)
	}
	if reply := good.dial("192.0.2.7", "").rcpt("a@example.org", "x@elsewhere.example"); strings.Contains(reply, "[ref ") {
		t.Errorf("postern was asked: %s", reply)
	}

	// milter-shutdown: an action that this release does not know refuses everybody while postern is away.
	unknown := startPostfix(t, false, "smtpd_milters = { inet:127.0.0.1:"+milterPort+", default_action=shutdown }")
	found := strings.Contains(check(unknown), "error    milter-shutdown")
	d.stop()
	conn, err := textproto.Dial("tcp", unknown.addr())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // it was only to ask
	said := ""
	for _, line := range []string{"EHLO mail.example.org", "MAIL FROM:<a@example.org>", "RCPT TO:<box@example.com>", "QUIT"} {
		_, reply, err := conn.ReadResponse(0)
		if said += reply + "\n"; err != nil || conn.PrintfLine("%s", line) != nil {
			break
		}
	}
	if refused := strings.Contains(said, "4.3.5 "); said == "" || refused != found {
		t.Errorf("milter-shutdown is found: %v, and the client reads %q", found, said)
	}

	// socket-unreachable: a chrooted smtpd does not see the socket.
	d.configure(`hostname = "mx.example.com"
[policy]
listen = ["unix:{dir}/policy.sock"]
[store]
kind = "memory"
[chains.inbound]
checks = ["access"]
`)
	d.start()
	jailed := startPostfix(t, true, "smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service unix:"+d.dir+"/policy.sock")
	expect(t, "out of reach", check(jailed), "error    socket-unreachable")
	if reply := jailed.dial("198.51.100.7", "").rcpt("a@example.org", "box@example.com"); !strings.HasPrefix(reply, "451 ") {
		t.Errorf("the client reads %s", reply)
	}
	// And no-default-action, shown: postern has gone from the other's port.
	if reply := bad.dial("198.51.100.7", "").rcpt("a@example.org", "box@example.com"); !strings.HasPrefix(reply, "451 ") {
		t.Errorf("without a default action the client reads %s", reply)
	}
	if reply := good.dial("198.51.100.7", "").rcpt("a@example.org", "box@example.com"); !strings.HasPrefix(reply, "250 ") {
		t.Errorf("with DUNNO the client reads %s", reply)
	}

	// loop: mail for a domain whose relay is this host itself goes round.
	loop := startPostfix(t, false, "relayhost = [127.0.0.1]", "smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service { unix:"+d.dir+"/policy.sock, timeout=25s, default_action=DUNNO }")
	expect(t, "goes round", check(loop), "error    loop  relayhost")
}

func slurp(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// `postern send` says what becomes of a message.
func TestSend(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, "[store]\nkind = \"memory\"\n") // for its configuration only
	hop := smtptest.Start(t)                          // which knows nobody
	p := startPostfix(t, false, "relay_domains = slow.example, no.example, away.example", "transport_maps = inline:{ slow.example=smtp:[127.0.0.1]:1, no.example=smtp:"+hop.NextHop()+", away.example=retry:later }", "mynetworks = 127.0.0.0/8",
		"smtpd_relay_restrictions = permit_mynetworks, reject_unauth_destination", "smtpd_recipient_restrictions = check_recipient_access inline:{ refused@example.com=REJECT }")
	letter := filepath.Join(d.dir, "letter.eml")
	if err := os.WriteFile(letter, []byte("Subject: of a file\n\n.\na line\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		args   []string
		status int
		want   []string
	}{
		{[]string{"--to", "box@example.com", "--subject", "hello", "--body", "it's me"}, 0, []string{"queued     as ", "sent       virtual: to=<box@example.com>", "=> delivered"}},
		{[]string{"--to", "box@example.com", "--file", letter}, 0, []string{"=> delivered"}},
		{[]string{"--to", "box@example.com", "--to", "x@slow.example"}, 75, []string{"deferred   smtp: to=<x@slow.example>", "=> deferred"}},
		{[]string{"--to", "x@no.example"}, 69, []string{"bounced    smtp: to=<x@no.example>", "=> bounced"}},
		{[]string{"--to", "x@away.example"}, 75, []string{"refused    x@away.example: 450 4.1.1", "every recipient is refused"}},
		{[]string{"--to", "refused@example.com"}, 69, []string{"refused    refused@example.com: 554 5.7.1", "every recipient is refused"}},
		{[]string{"--to", "refused@example.com", "--to", "box@example.com"}, 69, []string{"refused    refused@example.com", "sent       virtual", "=> bounced"}},
		{[]string{"--to", "a@b\n"}, 1, []string{"holds what no address or subject has"}},
		{[]string{"--to", "box@example.com", "--server", "127.0.0.1:1"}, 1, []string{"connection refused"}},
		{[]string{"--to", "box@example.com", "--log", "/nothing"}, 1, []string{"/nothing: no such file"}},
	} {
		args := []string{"send", "--from", "me@example.org", "--config-dir", p.config, "--timeout", "30s"}
		if !strings.Contains(strings.Join(tt.args, " "), "--server") {
			args = append(args, "--server", p.addr())
		}
		out, err := d.try(append(args, tt.args...)...)
		status := 0
		if e, ok := errors.AsType[*exec.ExitError](err); ok {
			status = e.ExitCode()
		}
		if status != tt.status {
			t.Errorf("%q: status %d\n%s", tt.args, status, out)
		}
		expect(t, strings.Join(tt.args, " "), out, tt.want...)
	}
}
