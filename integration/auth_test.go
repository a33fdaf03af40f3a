package integration

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"postern/internal/dnstest"
)

// arcSeal has dkimpy seal a message as a domain, which has found out results,
// "id; ...". The domain's key is published.
func arcSeal(t *testing.T, dns *dnstest.Server, domain, results, message string) string {
	t.Helper()
	private, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&private.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	spf(dns, "seal"+base64.RawURLEncoding.EncodeToString(public[60:66])+"._domainkey."+domain, "v=DKIM1; k=rsa; p="+base64.StdEncoding.EncodeToString(public))
	key := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(private)})
	const program = `
import sys, dkim
selector, domain, key, results = [a.encode() for a in sys.argv[1:]]
m = sys.stdin.buffer.read()
sys.stdout.buffer.write(b''.join(dkim.arc_sign(b'Authentication-Results: ' + results + b'\r\n' + m, selector, domain, key, results.split(b';')[0])) + m)
`
	cmd := exec.Command("/usr/bin/python3", "-c", program, "seal"+base64.RawURLEncoding.EncodeToString(public[60:66]), domain, string(key), results)
	cmd.Stdin = strings.NewReader(strings.ReplaceAll(strings.ReplaceAll(message, "\r\n", "\n"), "\n", "\r\n"))
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%v %s", err, complaint.String())
	}
	return string(out)
}

const authConfig = `
hostname = "mx.example.com"
[dns]
timeout = "1s"
attempts = 1
servfail_ttl = "1s"
[chains.inbound]
checks = ["access", "spf"]
[auth]
mode = "enforce"
[auth.dmarc]
quarantine = "quarantine"
exempt = ["198.51.100.7"]
[auth.arc]
trusted_sealers = ["lists.example"]
[[auth.upstream]]
authserv_id = "mx1.example.com"
clients = ["192.0.2.99/32"]
[[headers.rules]]
name = "tag"
when = "dmarc.override=arc or dmarc=none and header.from=odd.example"
action = "SUBJECT [odd]"
[[headers.rules]]
name = "refuse"
when = "dmarc=none"
match = ["from:eve@odd.example"]
action = "REJECT 5.7.1 not you"
`

// What a message says of its author through a real Postfix: passed, refused,
// held, and what claims to be our results taken out.
func TestAuth(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name   string
		policy bool // the policy door is asked, too
	}{{"both doors", true}, {"milter alone", false}} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			dns := dnstest.Start(t)
			for name, text := range map[string]string{
				"_dmarc.strict.example": "v=DMARC1; p=reject; sp=none", "_dmarc.held.example": "v=DMARC1; p=quarantine",
				"strict.example": "v=spf1 ip4:192.0.2.9 ?all", "other.example": "v=spf1 ip4:192.0.2.0/24 -all",
			} {
				spf(dns, name, text)
			}
			dns.Behave("_dmarc.broken.example", dnstest.ServFail)
			sign := dkimSigner(t, dns, "sel", "strict.example")
			signOther := dkimSigner(t, dns, "sel", "other.example")
			d := newDaemon(t, withDNS(authConfig, dns)+"[milter]\nlisten = [\"unix:{dir}/milter.sock\"]\n"+fmt.Sprintf("envelope = %v\n", !tt.policy))
			d.start()
			settings := []string{d.milters("tempfail"), boxes}
			if tt.policy {
				settings = append(settings, restrictions("unix:"+d.socket())...)
			}
			p := startPostfix(t, false, settings...)
			s := p.dial("192.0.2.7", "")
			send := func(sender, message string) string {
				_, data := s.hand(sender, message, "box@example.com")
				return data
			}
			line := func(box string) string { return strings.Join(strings.Fields(p.takeFrom(box)), " ") }

			matches(t, "signed", send("ann@other.example", sign(letter("ann@strict.example"))), `^250 `)
			got := line("box")
			expect(t, "signed", got, "Authentication-Results: mx.example.com; spf=pass smtp.mailfrom=other.example; dkim=pass header.d=strict.example header.s=sel header.a=ed25519-sha256 header.b=",
				"dmarc=pass (p=reject) header.from=strict.example; iprev=")
			if !strings.HasPrefix(got[strings.Index(got, "Authentication-Results"):], "Authentication-Results: mx.example.com") || strings.Count(got, "Authentication-Results:") != 1 {
				t.Errorf("not one field:\n%s", got)
			}

			reply := send("ann@other.example", letter("ann@strict.example"))
			matches(t, "not signed", reply, `^550 5\.7\.26 Mail from strict\.example is refused by the policy of that domain \(DMARC p=reject\): neither SPF nor DKIM passed for it \[ref `)
			ref := reply[strings.Index(reply, "[ref ")+5 : strings.Index(reply, "]")]
			expect(t, "explain", d.run("explain", ref), "dmarc-reject", "spf=pass, dkim=none, dmarc=fail strict.example p=reject")
			matches(t, "signed by another", send("ann@other.example", signOther(letter("ann@strict.example"))), `^550 5\.7\.26 `)
			matches(t, "changed on the way", send("ann@other.example", sign(letter("ann@strict.example"))+"more\n"), `^550 5\.7\.26 `)
			matches(t, "below, sp=none", send("ann@other.example", letter("ann@a.strict.example")), `^250 `)
			expect(t, "below", line("box"), "dmarc=fail (p=reject, here none) header.from=a.strict.example")
			matches(t, "the DNS does not answer", send("ann@other.example", letter("ann@broken.example")), `^250 `)
			expect(t, "the DNS does not answer", line("box"), "dmarc=temperror header.from=broken.example")

			// Forged results among others.
			matches(t, "forged", send("ann@other.example", letter("ann@other.example",
				"Authentication-Results: mx.example.com; dmarc=pass header.from=bank.example",
				"Authentication-Results: list.example; dkim=pass header.d=kept.example",
				"Authentication-Results: (x)\n\tMX.example.COM 1;\n\tdkim=pass header.d=bank.example")), `^250 `)
			got = line("box")
			expect(t, "forged", got, "Authentication-Results: list.example; dkim=pass header.d=kept.example", "dmarc=none header.from=other.example")
			if strings.Contains(got, "bank.example") {
				t.Errorf("forged:\n%s", got)
			}

			// A list changes the message and seals what it has seen: that counts where
			// the sealer is trusted.
			sealed := func(sealer, message string) string {
				return arcSeal(t, dns, sealer, sealer+"; dmarc=pass header.from=strict.example; arc=none", sign(message)+"-- \nthe list\n")
			}
			matches(t, "by a list that does not seal", send("list@lists.example", sign(letter("ann@strict.example"))+"-- \nthe list\n"), `^550 5\.7\.26 `)
			matches(t, "by a list that is trusted", send("list@lists.example", sealed("lists.example", letter("ann@strict.example"))), `^250 `)
			got = line("box")
			expect(t, "by a list that is trusted", got, "arc=pass (sealed by lists.example) smtp.remote-ip=192.0.2.7; dmarc=fail (p=reject, passed at lists.example) header.from=strict.example",
				"Subject: [odd] ", "ARC-Seal: i=1; cv=none;")
			expect(t, "by a list that is trusted", fmt.Sprint(d.decided("reason", "dmarc-arc")), "arc=pass lists.example (1)")
			matches(t, "by another list", send("list@lists.example", sealed("other-lists.example", letter("ann@strict.example"))), `^550 5\.7\.26 `)
			matches(t, "changed behind the list", send("list@lists.example", sealed("lists.example", letter("ann@strict.example"))+"more\n"), `^550 5\.7\.26 `)

			// Rules of one's own.
			matches(t, "a rule", send("ann@odd.example", letter("ann@odd.example")), `^250 `)
			expect(t, "a rule", line("box"), "Subject: [odd] ")
			matches(t, "a rule for one sender", send("eve@odd.example", letter("eve@odd.example")), `^550 5\.7\.1 not you`)

			// What an upstream says is believed from there alone.
			believed := letter("ann@strict.example", "Authentication-Results: mx1.example.com; spf=pass smtp.mailfrom=strict.example")
			matches(t, "results from elsewhere", send("ann@other.example", believed), `^550 5\.7\.26 `)
			s = p.dial("192.0.2.99", "")
			matches(t, "results of an upstream", send("ann@other.example", believed), `^250 `)
			expect(t, "results of an upstream", line("box"), "mx1.example.com; spf=pass", "dmarc=pass (p=reject)")
			s = p.dial("192.0.2.7", "")

			// Step by step, without sending it.
			file := filepath.Join(t.TempDir(), "mail.eml")
			if err := os.WriteFile(file, []byte(sealed("lists.example", letter("ann@strict.example"))), 0o600); err != nil {
				t.Fatal(err)
			}
			expect(t, "auth test", d.run("auth", "test", file, "--client", "192.0.2.7", "--sender", "list@lists.example", "--helo", "lists.example"),
				"DKIM     fail: the body has been changed", "domain     strict.example (selector sel, ed25519-sha256)", "key at     sel._domainkey.strict.example",
				"signed was ", "ARC      pass", "1 lists.example (trusted)", "lists.example; dmarc=pass header.from=strict.example",
				"DMARC    fail for strict.example", "record of strict.example: v=DMARC1; p=reject; sp=none", "has passed at lists.example", "Authentication-Results: mx.example.com",
				"=> continue (dmarc-arc)")

			// The policy of quarantine puts it on hold.
			matches(t, "held", send("ann@other.example", letter("ann@held.example")), `^250 `)
			expect(t, "held", fmt.Sprint(d.decided("reason", "dmarc-quarantine")), "hold")

			// SPF for the author's domain, and a forwarder that is trusted.
			s = p.dial("192.0.2.9", "")
			matches(t, "SPF aligned", send("ann@strict.example", letter("ann@strict.example")), `^250 `)
			expect(t, "SPF aligned", line("box"), "spf=pass smtp.mailfrom=strict.example; dkim=none; dmarc=pass")
			s = p.dial("198.51.100.7", "")
			matches(t, "exempt", send("", letter("ann@strict.example")), `^250 `)
			expect(t, "exempt", line("box"), "dmarc=fail (p=reject) header.from=strict.example")
			expect(t, "exempt", fmt.Sprint(d.decided("reason", "dmarc-exempt")), "spf=")
			expect(t, "metrics", d.metrics(), `postern_auth_results_total{method="dmarc",result="pass"} 3`)
			p.noComplaint()
		})
	}
}
