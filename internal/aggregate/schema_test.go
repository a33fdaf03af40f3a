package aggregate

import (
	"bytes"
	"os/exec"
	"strings"
	"testing"
)

// validate holds XML against appendix C of RFC 7489 and returns what is wrong
// with it.
func validate(t *testing.T, text []byte) string {
	t.Helper()
	if _, err := exec.LookPath("xmllint"); err != nil {
		t.Skip("xmllint is not installed (make deps installs it)")
	}
	cmd := exec.Command("xmllint", "--noout", "--nonet", "--schema", "testdata/rfc7489.xsd", "-")
	cmd.Stdin = bytes.NewReader(text)
	out, err := cmd.CombinedOutput()
	if err == nil {
		return ""
	}
	return string(out)
}

// What is written is valid, whatever strangers have put into it.
func TestWriteIsValid(t *testing.T) {
	r := &Report{
		Version:  "1.0",
		Metadata: Metadata{Organization: "Mail & Co. <mx>", Email: "dmarc@example.com", Contact: "https://example.com/?a=1&b=2", ID: "20261127.example.org", Range: Range{1795737600, 1795823999}},
		Published: Policy{
			Domain: "example.org", ADKIM: "r", ASPF: "s", P: "reject", SP: "quarantine", Pct: "50", FO: "1:d:s",
		},
		Records: []Record{{
			Row: Row{SourceIP: "192.0.2.1", Count: 1, Evaluated: Evaluated{Disposition: "none", DKIM: "fail", SPF: "fail", Reasons: []Reason{
				{Type: "local_policy", Comment: "arc=pass"}, {Type: "sampled_out"}, {Type: "trusted_forwarder"},
			}}},
			Identifiers: Identifiers{EnvelopeTo: "example.com", EnvelopeFrom: "]]>&<!--\x00\xff", HeaderFrom: "example.org"},
			Results: Results{
				DKIM: []DKIM{{Domain: "a\"b'c.example", Selector: "<s>", Result: "permerror", Human: "no key"}, {Result: "none"}},
				SPF:  []SPF{{Domain: "mail.example.net", Scope: "helo", Result: "softfail"}},
			},
		}, {
			Row:         Row{SourceIP: "2001:db8::1", Count: 1 << 40, Evaluated: Evaluated{Disposition: "reject", DKIM: "pass", SPF: "pass"}},
			Identifiers: Identifiers{EnvelopeFrom: "example.org", HeaderFrom: "bücher.example"},
			Results:     Results{SPF: []SPF{{Domain: "example.org", Scope: "mfrom", Result: "none"}}},
		}},
	}
	var b bytes.Buffer
	if err := Write(&b, r); err != nil {
		t.Fatal(err)
	}
	if fault := validate(t, b.Bytes()); fault != "" {
		t.Errorf("%s\n%s", fault, b.String())
	}
	// The schema would have noticed.
	for _, broken := range [][2]string{
		{"<disposition>reject", "<disposition>refuse"}, {"<count>1<", "<count>0<"}, {"192.0.2.1", "invalid IP"}, {"<scope>helo</scope>", ""},
	} {
		if text := strings.Replace(b.String(), broken[0], broken[1], 1); validate(t, []byte(text)) == "" {
			t.Errorf("valid with %q", broken[1])
		}
	}
}
