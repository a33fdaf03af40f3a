package integration

import (
	"os/exec"
	"strings"
	"testing"
)

// A gateway seals what it forwards, after its rules have changed it, and the next
// gateway takes its word for what it cannot verify any more.
func TestSeal(t *testing.T) {
	t.Parallel()
	s := newSigning(t, strings.Replace(dkimConfig, "[dkim]\n", `[auth]
mode = "enforce"
skip = ["10.0.0.0/8"]
[auth.arc]
trusted_sealers = ["example.com"]
[[headers.rules]]
name = "list"
all = ['/^Subject:/']
when = "dmarc=pass"
action = "SUBJECT [list]"
[dkim]
seal = "example.com"
`, 1), "--selector seal")
	spf(s.dns, "_dmarc.author.example", "v=DMARC1; p=reject")
	s.publish()
	sign := dkimSigner(t, s.dns, "sel", "author.example")
	s.start()
	p := startPostfix(t, false, s.milters("tempfail"), boxes)
	send := func(what, message, want string) {
		t.Helper()
		_, data := p.dial("192.0.2.7", "").hand("list@lists.example", message, "box@example.com")
		matches(t, what, data, want)
	}
	send("from its author", sign(letter("ann@author.example")), `^250 `)
	got := p.takeFrom("box")
	one := strings.Join(strings.Fields(got), " ")
	expect(t, "sealed", one, "ARC-Seal: i=1; a=rsa-sha256; cv=none; d=example.com; s=seal;", "ARC-Authentication-Results: i=1; mx.example.com;", "dmarc=pass (p=reject) header.from=author.example", "Subject: [list] test")
	line := s.decided("reason", "arc-sealed")
	expect(t, "the line", line["detail"].(string), "i=1 d=example.com s=seal cv=none")
	expect(t, "the line's results", line["auth"].(string), "dmarc=")

	// Another implementation says what the chain is worth.
	cmd := exec.Command("/usr/bin/python3", "-c", `
import sys, dkim
cv, _, why = dkim.arc_verify(sys.stdin.buffer.read(), dnsfunc=lambda name, timeout=5: sys.argv[1].encode())
print((cv or b'none').decode(), why)
`, s.records()[0].Record)
	_, delivered, _ := strings.Cut(got, "ARC-Seal:")
	cmd.Stdin = strings.NewReader(strings.ReplaceAll("ARC-Seal:"+delivered, "\n", "\r\n"))
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.HasPrefix(string(out), "pass ") {
		t.Errorf("dkimpy: %v %s", err, out)
	}

	// The next one, here the same: its author's signature is broken, the seal is not.
	_, forwarded, _ := strings.Cut(got, "ARC-Seal:")
	send("forwarded", "ARC-Seal:"+forwarded, `^250 `)
	one = strings.Join(strings.Fields(p.takeFrom("box")), " ")
	expect(t, "forwarded", one, "ARC-Seal: i=2; a=rsa-sha256; cv=pass; d=example.com; s=seal;", "arc=pass (sealed by example.com)", "dmarc=fail (p=reject, passed at example.com)")
	send("forged", strings.Replace("ARC-Seal:"+forwarded, "header.from=author.example", "header.from=author.example ", 1)+"more\r\n", `^550 5\.7\.26 `)

	// What is ours is signed and not sealed.
	_, data := p.dial("127.0.0.1", "").hand("ann@example.com", letter("ann@example.com"), "box@example.com")
	matches(t, "ours", data, `^250 `)
	one = p.takeFrom("box")
	if strings.Contains(one, "ARC-") || !strings.Contains(one, "DKIM-Signature:") {
		t.Error(one)
	}
	p.noComplaint()
}
