package dmarcreport

import "testing"

// Who is asked whether reports about others may go there says so by a record
// that begins with the version (RFC 7489 section 7.1).
func TestAccepts(t *testing.T) {
	for _, tt := range []struct {
		texts  []string
		wanted bool
		rua    string
	}{
		{[]string{"v=DMARC1"}, true, ""},
		{[]string{" v = DMARC1 ; RUA = mailto:a@example.org"}, true, "mailto:a@example.org"},
		{[]string{"v=DMARC1; rua=mailto:a@example.org; rua=mailto:b@example.org"}, true, "mailto:b@example.org"},
		{[]string{"x=DMARC1; rua=mailto:a@example.org"}, false, ""},
		{[]string{"v=DMARC2; rua=mailto:a@example.org"}, false, ""},
		{[]string{"rua=mailto:a@example.org; v=DMARC1"}, false, ""},
		{[]string{"something else", "v=DMARC1; rua=mailto:a@example.org"}, true, "mailto:a@example.org"},
		{nil, false, ""},
	} {
		if wanted, rua := accepts(tt.texts); wanted != tt.wanted || rua != tt.rua {
			t.Errorf("%q: %v, %q", tt.texts, wanted, rua)
		}
	}
}
