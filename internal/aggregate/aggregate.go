// Package aggregate reads and writes DMARC aggregate reports (RFC 7489 section
// 7.2 and appendix C).
package aggregate

import (
	"bufio"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"

	"golang.org/x/text/encoding/htmlindex"
	"golang.org/x/text/encoding/unicode"
	"golang.org/x/text/runes"
	"golang.org/x/text/transform"
)

// Report is a report as it stands in its XML.
type Report struct {
	XMLName   xml.Name `xml:"feedback" json:"-"`
	Version   string   `xml:"version,omitempty" json:"version,omitempty"`
	Metadata  Metadata `xml:"report_metadata" json:"metadata"`
	Published Policy   `xml:"policy_published" json:"policy"`
	Records   []Record `xml:"record" json:"records"`
}

// Metadata says who reports about which time.
type Metadata struct {
	Organization string   `xml:"org_name" json:"organization"`
	Email        string   `xml:"email" json:"email"`
	Contact      string   `xml:"extra_contact_info,omitempty" json:"contact,omitempty"`
	ID           string   `xml:"report_id" json:"id"`
	Range        Range    `xml:"date_range" json:"range"`
	Errors       []string `xml:"error,omitempty" json:"errors,omitempty"`
}

// Range is from when until when, in Unix seconds.
type Range struct {
	Begin int64 `xml:"begin" json:"begin"`
	End   int64 `xml:"end" json:"end"`
}

// Policy is the record that the reporter has found.
type Policy struct {
	Domain string `xml:"domain" json:"domain"`
	ADKIM  string `xml:"adkim,omitempty" json:"adkim,omitempty"`
	ASPF   string `xml:"aspf,omitempty" json:"aspf,omitempty"`
	P      string `xml:"p" json:"p"`
	SP     string `xml:"sp" json:"sp,omitempty"`
	Pct    string `xml:"pct" json:"pct,omitempty"`
	FO     string `xml:"fo" json:"fo,omitempty"`
}

// Record is how many messages fared alike.
type Record struct {
	Row         Row         `xml:"row" json:"row"`
	Identifiers Identifiers `xml:"identifiers" json:"identifiers"`
	Results     Results     `xml:"auth_results" json:"results"`
}

// Row is the client and what became of its messages.
type Row struct {
	SourceIP  string    `xml:"source_ip" json:"source_ip"`
	Count     int64     `xml:"count" json:"count"`
	Evaluated Evaluated `xml:"policy_evaluated" json:"evaluated"`
}

// Evaluated is the outcome of DMARC: dkim and spf say whether one passed that
// is aligned.
type Evaluated struct {
	Disposition string   `xml:"disposition" json:"disposition"`
	DKIM        string   `xml:"dkim" json:"dkim"`
	SPF         string   `xml:"spf" json:"spf"`
	Reasons     []Reason `xml:"reason,omitempty" json:"reasons,omitempty"`
}

// Passes reports whether the messages passed DMARC.
func (e *Evaluated) Passes() bool {
	return strings.EqualFold(e.DKIM, "pass") || strings.EqualFold(e.SPF, "pass")
}

// Reason is why the policy was not carried out.
type Reason struct {
	Type    string `xml:"type" json:"type"`
	Comment string `xml:"comment,omitempty" json:"comment,omitempty"`
}

// Identifiers are the domains of the messages.
type Identifiers struct {
	EnvelopeTo   string `xml:"envelope_to,omitempty" json:"envelope_to,omitempty"`
	EnvelopeFrom string `xml:"envelope_from" json:"envelope_from,omitempty"`
	HeaderFrom   string `xml:"header_from" json:"header_from"`
}

// Results are those before alignment.
type Results struct {
	DKIM []DKIM `xml:"dkim,omitempty" json:"dkim,omitempty"`
	SPF  []SPF  `xml:"spf" json:"spf"`
}

// DKIM is the result of one signature.
type DKIM struct {
	Domain   string `xml:"domain" json:"domain"`
	Selector string `xml:"selector,omitempty" json:"selector,omitempty"`
	Result   string `xml:"result" json:"result"`
	Human    string `xml:"human_result,omitempty" json:"human_result,omitempty"`
}

// SPF is the result of one identity.
type SPF struct {
	Domain string `xml:"domain" json:"domain"`
	Scope  string `xml:"scope,omitempty" json:"scope,omitempty"` // "mfrom" or "helo"
	Result string `xml:"result" json:"result"`
}

// maxText is what is kept of one value.
const maxText = 1000

// bounds are those of what is read, in bytes but for records.
type bounds struct {
	report  int64 // the XML of one
	records int
	file    int64 // one file, packed or not
	total   int64 // all that is unpacked of one file
}

// usual are the bounds of the exported functions.
var usual = bounds{report: 64 << 20, records: 200_000, file: 128 << 20, total: 1 << 30}

var (
	errReport  = errors.New("it is no aggregate report: there is no <feedback>")
	errDocType = errors.New("it declares a document type, no report does")
)

func tooLarge(most int64) error { return fmt.Errorf("more than %d MB", most>>20) }

// Parse reads the XML of one report. Namespaces and elements that are not known
// are passed over, what must be there may be missing, and bytes that do not
// belong into XML become U+FFFD: real reports are like that. A document type is
// a fault, and so is a report of more than 64 MB or 200,000 records.
func Parse(r io.Reader) (*Report, error) { return usual.parse(r) }

func (b *bounds) parse(r io.Reader) (*Report, error) {
	limited := &io.LimitedReader{R: r, N: b.report + 1}
	d := xml.NewDecoder(readable(limited))
	d.Strict = false // some write a bare "&" into names
	d.CharsetReader = func(label string, in io.Reader) (io.Reader, error) {
		if unicodeLabel(label) {
			return in, nil
		}
		e, err := htmlindex.Get(label)
		if err != nil {
			return nil, fmt.Errorf("the character set %q is not known", label)
		}
		return transform.NewReader(in, transform.Chain(e.NewDecoder(), runes.Map(legal))), nil
	}
	fail := func(err error) (*Report, error) {
		if limited.N <= 0 {
			err = tooLarge(b.report)
		}
		line, column := d.InputPos()
		return nil, fmt.Errorf("line %d, column %d: %w", line, column, err)
	}
	out := &Report{}
	depth, inside := 0, false
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) && !inside {
			return fail(errReport)
		}
		if err != nil {
			return fail(err)
		}
		switch e := token.(type) {
		case xml.Directive:
			return fail(errDocType)
		case xml.StartElement:
			depth++
			if depth == 1 {
				if inside = e.Name.Local == "feedback"; !inside {
					return fail(errReport)
				}
				continue
			}
			switch e.Name.Local {
			case "version":
				err = d.DecodeElement(&out.Version, &e)
			case "report_metadata":
				err = d.DecodeElement(&out.Metadata, &e)
			case "policy_published":
				err = d.DecodeElement(&out.Published, &e)
			case "record":
				if len(out.Records) == b.records {
					return fail(fmt.Errorf("more than %d records", b.records))
				}
				var record Record
				if err = d.DecodeElement(&record, &e); err == nil {
					record.clean()
					out.Records = append(out.Records, record)
				}
			default:
				err = d.Skip()
			}
			depth--
			if err != nil {
				return fail(err)
			}
		case xml.EndElement:
			if depth--; depth == 0 {
				out.clean()
				return out, nil
			}
		}
	}
}

// readable replaces what XML cannot have in a text that says it is UTF-8, or
// does not say what it is. UTF-16 is told by its mark.
func readable(in io.Reader) io.Reader {
	b := bufio.NewReaderSize(in, 512)
	head, _ := b.Peek(200) // what cannot be read shows later
	if m := declared.FindSubmatch(head); m != nil && !unicodeLabel(string(m[1])) {
		return b // CharsetReader's
	}
	return transform.NewReader(b, transform.Chain(unicode.BOMOverride(runes.ReplaceIllFormed()), runes.Map(legal)))
}

var declared = regexp.MustCompile(`^\s*<\?xml[^>]*encoding\s*=\s*["']([^"']+)`)

// unicodeLabel reports whether a text is UTF-8 by the time the parser sees it.
// One whose declaration can be read as ASCII is not UTF-16, whatever it says.
func unicodeLabel(label string) bool {
	label = strings.ToLower(label)
	return label == "utf-8" || label == "utf8" || strings.HasPrefix(label, "utf-16")
}

// legal replaces a character that XML cannot have.
func legal(r rune) rune {
	if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0xFFFE || r == 0xFFFF {
		return '\uFFFD'
	}
	return r
}

func clean(texts ...*string) {
	for _, t := range texts {
		*t = strings.TrimSpace(*t)
		if len(*t) > maxText {
			*t = strings.ToValidUTF8((*t)[:maxText], "")
		}
	}
}

func (r *Report) clean() {
	m, p := &r.Metadata, &r.Published
	clean(&r.Version, &m.Organization, &m.Email, &m.Contact, &m.ID, &p.Domain, &p.ADKIM, &p.ASPF, &p.P, &p.SP, &p.Pct, &p.FO)
	for i := range m.Errors {
		clean(&m.Errors[i])
	}
}

func (r *Record) clean() {
	e, id := &r.Row.Evaluated, &r.Identifiers
	clean(&r.Row.SourceIP, &e.Disposition, &e.DKIM, &e.SPF, &id.EnvelopeFrom, &id.EnvelopeTo, &id.HeaderFrom)
	for i := range e.Reasons {
		clean(&e.Reasons[i].Type, &e.Reasons[i].Comment)
	}
	for i := range r.Results.DKIM {
		d := &r.Results.DKIM[i]
		clean(&d.Domain, &d.Selector, &d.Result, &d.Human)
	}
	for i := range r.Results.SPF {
		s := &r.Results.SPF[i]
		clean(&s.Domain, &s.Scope, &s.Result)
	}
	r.Row.Count = max(0, r.Row.Count)
}

// Write writes the XML of a report.
func Write(w io.Writer, r *Report) error {
	if _, err := io.WriteString(w, xml.Header); err != nil {
		return err
	}
	e := xml.NewEncoder(w)
	e.Indent("", "  ")
	if err := e.Encode(r); err != nil {
		return err
	}
	_, err := io.WriteString(w, "\n")
	return err
}
