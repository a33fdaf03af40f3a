package aggregate

import (
	"archive/zip"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

// As the large receivers write them.
const (
	plainReport = `<?xml version="1.0" encoding="UTF-8" ?>
<feedback>
  <report_metadata>
    <org_name>google.example</org_name>
    <email>noreply-dmarc-support@google.example</email>
    <extra_contact_info>https://support.google.example/a/answer/1</extra_contact_info>
    <report_id>13190401177475355109</report_id>
    <date_range>
      <begin>1506988800</begin>
      <end>1507075199</end>
    </date_range>
  </report_metadata>
  <policy_published>
    <domain>example.org</domain>
    <adkim>r</adkim>
    <aspf>r</aspf>
    <p>none</p>
    <sp>none</sp>
    <pct>100</pct>
  </policy_published>
  <record>
    <row>
      <source_ip>192.0.2.7</source_ip>
      <count>12</count>
      <policy_evaluated><disposition>none</disposition><dkim>pass</dkim><spf>fail</spf></policy_evaluated>
    </row>
    <identifiers><header_from>example.org</header_from></identifiers>
    <auth_results>
      <dkim><domain>example.org</domain><result>pass</result><selector>s1</selector></dkim>
      <spf><domain>bounce.example.net</domain><result>pass</result></spf>
    </auth_results>
  </record>
  <record>
    <row>
      <source_ip>2001:db8::66</source_ip>
      <count>3</count>
      <policy_evaluated><disposition>reject</disposition><dkim>fail</dkim><spf>fail</spf>
        <reason><type>local_policy</type><comment>arc=pass</comment></reason></policy_evaluated>
    </row>
    <identifiers><header_from>Example.org</header_from></identifiers>
    <auth_results><dkim><domain>list.example</domain><result>Pass</result></dkim><spf><domain>evil.example</domain><result>softfail</result></spf></auth_results>
  </record>
</feedback>`
	namespaced = `<feedback xmlns:xsd="http://www.w3.org/2001/XMLSchema" xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">
  <version>1.0</version>
  <report_metadata><org_name>Enterprise Outlook</org_name><email>x@microsoft.example</email><report_id>ab12</report_id>
  <date_range><begin>1700000000</begin><end>1700086400</end></date_range></report_metadata>
  <policy_published><domain>example.org</domain><p>reject</p><sp>reject</sp><pct>100</pct><fo>0</fo></policy_published>
  <extension><unknown a="b">x<y/></unknown></extension>
  <record><row><source_ip>::ffff:192.0.2.7</source_ip><count>1</count><policy_evaluated><disposition>none</disposition><dkim>fail</dkim><spf>pass</spf></policy_evaluated></row>
  <identifiers><envelope_to>a.example</envelope_to><envelope_from>example.org</envelope_from><header_from>example.org</header_from></identifiers>
  <auth_results><spf><domain>example.org</domain><scope>mfrom</scope><result>pass</result></spf></auth_results></record>
</feedback>`
	successor = `<?xml version="1.0"?><feedback xmlns="urn:ietf:params:xml:ns:dmarc-2.0"><version>2.0</version><report_metadata><org_name>n</org_name><report_id>1</report_id></report_metadata>` +
		`<policy_published><domain>example.org</domain><p>none</p><np>reject</np><testing>n</testing></policy_published></feedback>`
)

func parse(t *testing.T, text string) *Report {
	t.Helper()
	r, err := Parse(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestParse(t *testing.T) {
	r := parse(t, plainReport)
	if r.Metadata.Organization != "google.example" || r.Metadata.Range != (Range{1506988800, 1507075199}) || r.Published != (Policy{Domain: "example.org", ADKIM: "r", ASPF: "r", P: "none", SP: "none", Pct: "100"}) || len(r.Records) != 2 {
		t.Errorf("%+v", r)
	}
	if rec := r.Records[1]; rec.Row.Evaluated.Reasons[0] != (Reason{"local_policy", "arc=pass"}) || rec.Row.Evaluated.Passes() || rec.Results.SPF[0] != (SPF{"evil.example", "", "softfail"}) || !r.Records[0].Row.Evaluated.Passes() {
		t.Errorf("%+v", rec)
	}
	if r := parse(t, namespaced); r.Version != "1.0" || len(r.Records) != 1 || r.Records[0].Identifiers != (Identifiers{"a.example", "example.org", "example.org"}) {
		t.Errorf("%+v", r)
	}
	if r := parse(t, successor); r.Published.P != "none" || r.Metadata.ID != "1" {
		t.Errorf("%+v", r)
	}
	latin := "<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?><feedback><report_metadata><org_name>Gr\xfc\xdfe</org_name></report_metadata></feedback>"
	if r := parse(t, latin); r.Metadata.Organization != "Grüße" {
		t.Errorf("%+v", r)
	}
}

// What real reporters have got wrong.
func TestParseSloppy(t *testing.T) {
	const meta = `<feedback><report_metadata><org_name>%s</org_name></report_metadata></feedback>`
	utf16 := func(s string) string {
		out := "\xff\xfe"
		for _, r := range s {
			out += string([]byte{byte(r), byte(r >> 8)})
		}
		return out
	}
	for name, tt := range map[string]struct{ in, want string }{
		"bare ampersand":             {fmt.Sprintf(meta, "A & B &nosuch; &amp; C"), "A & B &nosuch; & C"},
		"Latin 1 that says nothing":  {fmt.Sprintf(meta, "Gr\xfc\xdfe"), "Gr\uFFFD\uFFFDe"},
		"Latin 1 that says UTF-8":    {`<?xml version="1.0" encoding="UTF-8"?>` + fmt.Sprintf(meta, "\xfc"), "\uFFFD"},
		"control characters":         {fmt.Sprintf(meta, "a\x00b\x1bc"), "a\uFFFDb\uFFFDc"},
		"the same in Windows-1252":   {`<?xml version="1.0" encoding="windows-1252"?>` + fmt.Sprintf(meta, "\x80\x02"), "€\uFFFD"},
		"UTF-8 that says UTF-16":     {`<?xml version="1.0" encoding="utf-16"?>` + fmt.Sprintf(meta, "ü"), "ü"},
		"UTF-16":                     {utf16(`<?xml version="1.0" encoding="utf-16"?>` + fmt.Sprintf(meta, "ü")), "ü"},
		"a mark before UTF-8":        {"\xef\xbb\xbf" + fmt.Sprintf(meta, "ü"), "ü"},
		"line ends in values":        {fmt.Sprintf(meta, "\r\n  x\r\n"), "x"},
		"no prefix that is declared": {strings.ReplaceAll(strings.ReplaceAll(fmt.Sprintf(meta, "x"), "<", "<ns0:"), "<ns0:/", "</ns0:"), "x"},
		"a long value":               {fmt.Sprintf(meta, strings.Repeat("ü", 1000)), strings.Repeat("ü", 500)},
		"text behind it":             {fmt.Sprintf(meta, "x") + "\x00\x00 & <", "x"},
	} {
		var got []string
		Read("f", strings.NewReader(tt.in), func(_ string, r *Report) { got = append(got, r.Metadata.Organization) }, func(err error) { got = append(got, err.Error()) })
		if len(got) != 1 || got[0] != tt.want {
			t.Errorf("%s: %q", name, got)
		}
	}
}

func TestParseFaults(t *testing.T) {
	for text, want := range map[string]string{
		"":                     "line 1, column 1: it is no aggregate report: there is no <feedback>",
		"<html><body/></html>": "line 1, column 7: it is no aggregate report: there is no <feedback>",
		"<feedback>\n<record>": "line 2, column 9: XML syntax error on line 2: unexpected EOF",
		"<feedback>":           "line 1, column 11: XML syntax error on line 1: unexpected EOF",
		"<feedback><record><row><count>x</count></row></record></feedback>":         `line 1, column 40: strconv.ParseInt: parsing "x": invalid syntax`,
		`<!DOCTYPE x [<!ENTITY a "b">]><feedback><version>&a;</version></feedback>`: "line 1, column 31: it declares a document type, no report does",
		`<?xml version="1.0" encoding="klingon"?><feedback/>`:                       `line 1, column 41: xml: opening charset "klingon": the character set "klingon" is not known`,
	} {
		if r, err := Parse(strings.NewReader(text)); err == nil || err.Error() != want {
			t.Errorf("%q: %v %+v", text, err, r)
		}
	}
	small := bounds{report: 2 << 20, records: 1000}
	many := "<feedback>" + strings.Repeat("<record/>", 1001)
	if _, err := small.parse(strings.NewReader(many)); err == nil || !strings.Contains(err.Error(), "more than 1000 records") {
		t.Error(err)
	}
	if _, err := small.parse(&endless{}); err == nil || !strings.Contains(err.Error(), "more than 2 MB") {
		t.Error(err)
	}
	deep := strings.Repeat("<feedback>", 100_000)
	if _, err := Parse(strings.NewReader(deep)); err == nil {
		t.Error("endless nesting")
	}
}

// endless is a report that does not end.
type endless struct{ begun bool }

func (e *endless) Read(p []byte) (int, error) {
	if !e.begun {
		e.begun = true
		return copy(p, "<feedback><version>"), nil
	}
	for i := range p {
		p[i] = 'x'
	}
	return len(p), nil
}

func gzipped(text string) string {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(text))
	_ = w.Close()
	return b.String()
}

func zipped(files ...string) string {
	var b bytes.Buffer
	w := zip.NewWriter(&b)
	for i, text := range files {
		f, _ := w.Create(fmt.Sprintf("r%d.xml", i))
		_, _ = f.Write([]byte(text))
	}
	_ = w.Close()
	return b.String()
}

func inBase64(s string) string {
	text, out := base64.StdEncoding.EncodeToString([]byte(s)), ""
	for len(text) > 76 {
		out, text = out+text[:76]+"\r\n", text[76:]
	}
	return out + text + "\r\n"
}

func TestRead(t *testing.T) {
	const head = "From: reports@google.example\r\nSubject: Report Domain: example.org\r\nMIME-Version: 1.0\r\n"
	alone := head + "Content-Type: application/zip; name=\"r.zip\"\r\nContent-Transfer-Encoding: base64\r\n\r\n" + inBase64(zipped(plainReport))
	mixed := head + "Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\nContent-Type: text/plain\r\n\r\nThis is a report.\r\n--b\r\nContent-Type: text/html\r\n\r\n<html>x</html>\r\n" +
		"--b\r\nContent-Type: application/gzip\r\nContent-Transfer-Encoding: BASE64\r\nContent-Disposition: attachment; filename=\"r.xml.gz\"\r\n\r\n" + inBase64(gzipped(plainReport)) + "--b--\r\n"
	for name, tt := range map[string]struct {
		in    string
		names []string
		fault string
	}{
		"plain":                     {plainReport, []string{"f"}, ""},
		"with a mark of its order":  {"\xef\xbb\xbf" + plainReport, []string{"f"}, ""},
		"gzip":                      {gzipped(plainReport), []string{"f"}, ""},
		"zip":                       {zipped(plainReport, namespaced), []string{"f/r0.xml", "f/r1.xml"}, ""},
		"gzip in a zip":             {zipped(gzipped(plainReport)), []string{"f/r0.xml"}, ""},
		"mail that is it":           {alone, []string{"f/r0.xml"}, ""},
		"mail with it":              {mixed, []string{"f/r.xml.gz"}, ""},
		"mail in a mail":            {head + "Content-Type: message/rfc822\r\n\r\n" + mixed, []string{"f/r.xml.gz"}, ""},
		"mailbox":                   {"From a Thu\n" + strings.ReplaceAll(alone, "\r\n", "\n") + "\nFrom b Thu\n" + strings.ReplaceAll(mixed, "\r\n", "\n"), []string{"f/1/r0.xml", "f/2/r.xml.gz"}, ""},
		"quoted-printable":          {head + "Content-Type: text/xml\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\n" + strings.ReplaceAll(plainReport, "=", "=3D"), []string{"f"}, ""},
		"mail without it":           {head + "\r\nHello\r\n", nil, "f: there is no report in it"},
		"empty":                     {"", nil, "f: there is no report in it"},
		"something else":            {"\x7fELF", nil, "f: there is no report in it"},
		"cut off":                   {gzipped(plainReport)[:100], nil, "f: unexpected EOF"},
		"a zip that is none":        {"PK\x03\x04xxxxxxxx", nil, "f: zip: not a valid zip file"},
		"one of two is faulty":      {zipped("<feedback>", namespaced), []string{"f/r1.xml"}, "f/r0.xml: line 1, column 11: XML syntax error on line 1: unexpected EOF"},
		"zips without end":          {nested(20), nil, "f/r0.xml/r0.xml/r0.xml/r0.xml/r0.xml/r0.xml/r0.xml: too many files inside each other"},
		"a part without a boundary": {head + "Content-Type: multipart/mixed; boundary=b\r\n\r\n--c\r\n", nil, "f: "},
	} {
		var names []string
		fault := ""
		Read("f", strings.NewReader(tt.in), func(name string, r *Report) { names = append(names, name) }, func(err error) { fault = err.Error() })
		if !reflect.DeepEqual(names, tt.names) || !strings.HasPrefix(fault, tt.fault) || (fault == "") != (tt.fault == "") {
			t.Errorf("%s: %q %q", name, names, fault)
		}
	}
}

func nested(n int) string {
	text := plainReport
	for range n {
		text = zipped(text)
	}
	return text
}

// What unpacks to far more than it is, is given up.
func TestBombs(t *testing.T) {
	b := bounds{report: 1 << 20, records: 10, file: 2 << 20, total: 8 << 20}
	faults := ""
	n := 0
	read := func(in string) {
		n, faults = 0, ""
		b.read("f", strings.NewReader(in), func(string, *Report) { n++ }, func(err error) { faults += err.Error() + "\n" })
	}
	large := gzipped("<feedback><version>" + strings.Repeat(" ", 2<<20))
	if read(large); n != 0 || !strings.Contains(faults, "more than 1 MB") || len(large) > 5000 {
		t.Error(n, faults)
	}
	files := make([]string, 30)
	for i := range files {
		files[i] = "<feedback><version>" + strings.Repeat(" ", 1<<20-100) + "</version></feedback>"
	}
	if read(zipped(files...)); n < 5 || n > 8 || !strings.Contains(faults, "more than 8 MB") {
		t.Error(n, faults)
	}
	if read("PK\x03\x04" + strings.Repeat("x", 3<<20)); n != 0 || faults != "f: more than 2 MB\n" {
		t.Error(n, faults)
	}
}

func TestSummary(t *testing.T) {
	var s Summary
	for range 2 {
		s.Add(parse(t, plainReport))
	}
	s.Add(parse(t, namespaced))
	s.Sort()
	if s.Reports != 2 || s.Duplicates != 1 || s.Count != 16 || s.Pass != 13 || s.Begin != 1506988800 || s.End != 1700086400 {
		t.Errorf("%+v", s)
	}
	want := []Source{
		{Domain: "example.org", IP: "2001:db8::66", Count: 3, Rejected: 3, Overridden: 3, Reporters: []string{"google.example"}, Signers: []string{"list.example"}},
		{Domain: "example.org", IP: "192.0.2.7", Count: 13, Pass: 13, DKIM: 12, SPF: 1, Reporters: []string{"google.example", "Enterprise Outlook"}, Signers: []string{"example.org"}},
	}
	if !reflect.DeepEqual(s.Sources, want) {
		t.Errorf("%+v", s.Sources)
	}
}

// What is written is read as it was.
func TestWrite(t *testing.T) {
	for _, text := range []string{plainReport, namespaced} {
		r := parse(t, text)
		r.Records[0].Results.DKIM = append(r.Records[0].Results.DKIM, DKIM{Domain: "a<b>&\"c", Result: "fail", Human: "x\x01\xff"})
		var b bytes.Buffer
		if err := Write(&b, r); err != nil {
			t.Fatal(err)
		}
		got := parse(t, b.String())
		d := &got.Records[0].Results.DKIM[len(got.Records[0].Results.DKIM)-1]
		if d.Domain != "a<b>&\"c" || d.Human != "x\uFFFD\uFFFD" {
			t.Errorf("%q", d)
		}
		d.Human, r.XMLName = "x\x01\xff", got.XMLName
		if !reflect.DeepEqual(got, r) {
			t.Errorf("%+v\n%+v", got, r)
		}
	}
}

func FuzzRead(f *testing.F) {
	for _, s := range []string{plainReport, namespaced, successor, gzipped(plainReport), zipped(plainReport), "From: x\r\nContent-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\n<feedback/>\r\n--b--\r\n", "From x\nA: b\n\n<feedback/>\n"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var s Summary
		some := false
		Read("f", bytes.NewReader(b), func(_ string, r *Report) { some = true; s.Add(r) }, func(error) { some = true })
		if s.Sort(); !some || s.Count < s.Pass {
			t.Fatalf("%+v", s)
		}
	})
}
