package integration

import (
	"fmt"
	"strings"
	"testing"

	"postern/internal/dnstest"
)

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
			expect(t, "metrics", d.metrics(), `postern_auth_results_total{method="dmarc",result="pass"} 2`)
			p.noComplaint()
		})
	}
}
