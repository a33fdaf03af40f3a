package dmarcreport

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"fmt"
	"strings"
	"time"

	"postern/internal/aggregate"
)

// feedback makes the report as it is now: one of a day that is not over ends
// earlier, and has a Report-ID of its own.
func (r *Reporter) feedback(rep *report, now time.Time) *aggregate.Report {
	begin := dayOf(rep.date)
	end := begin.Add(day).Unix() - 1
	id := []string{rep.domain, rep.date, r.cfg.organization()}
	if now.Unix() < end {
		end = now.Unix()
		id = append(id, now.UTC().Format(time.TimeOnly))
	}
	return &aggregate.Report{
		Version: "1.0",
		Metadata: aggregate.Metadata{
			Organization: r.cfg.organization(), Email: r.cfg.Email, Contact: r.cfg.Contact, ID: hashOf(id...)[:24],
			Range: aggregate.Range{Begin: begin.Unix(), End: end},
		},
		Published: rep.newest.Policy, Records: rep.rows,
	}
}

// pack writes the report and packs it.
func (r *Reporter) pack(rep *report, now time.Time) ([]byte, error) {
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if err := aggregate.Write(z, r.feedback(rep, now)); err != nil {
		return nil, fmt.Errorf("the report cannot be written: %w", err)
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("the report cannot be written: %w", err)
	}
	return b.Bytes(), nil
}

// message returns the mail, with LF as line ends: sendmail(1) wants those of the
// system. Names of files and the subject are those of RFC 7489 section 7.2.1.1.
func (r *Reporter) message(rep *report, packed []byte, to string, now time.Time) []byte {
	org, f := r.cfg.organization(), r.feedback(rep, now).Metadata
	id := f.ID
	file := fmt.Sprintf("%s!%s!%d!%d!%s.xml.gz", r.cfg.Email[strings.LastIndexByte(r.cfg.Email, '@')+1:], rep.domain, f.Range.Begin, f.Range.End, id)
	boundary := "postern-" + id
	var b bytes.Buffer
	for _, h := range [][2]string{
		{"From", r.cfg.Email},
		{"To", to},
		{"Subject", fmt.Sprintf("Report Domain: %s\n Submitter: %s\n Report-ID: <%s>", rep.domain, r.hostname, id)},
		{"Date", now.Format("Mon, 02 Jan 2006 15:04:05 -0700")},
		{"Message-ID", "<" + id + "." + hashOf(to)[:8] + "@" + r.hostname + ">"},
		{"Auto-Submitted", "auto-generated"}, // RFC 3834: nobody's absence answers it
		{"MIME-Version", "1.0"},
		{"Content-Type", "multipart/mixed; boundary=\"" + boundary + "\""},
	} {
		b.WriteString(h[0] + ": " + h[1] + "\n")
	}
	fmt.Fprintf(&b, "\n--%s\nContent-Type: text/plain; charset=us-ascii\n\nThis is a DMARC aggregate report of %s\nfor %s, %s (UTC): %d messages.\n\n", boundary, org, rep.domain, rep.date, rep.count)
	fmt.Fprintf(&b, "--%s\nContent-Type: application/gzip\nContent-Transfer-Encoding: base64\nContent-Disposition: attachment;\n filename=\"%s\"\n\n", boundary, file)
	text := base64.StdEncoding.EncodeToString(packed)
	for len(text) > 76 {
		b.WriteString(text[:76] + "\n")
		text = text[76:]
	}
	fmt.Fprintf(&b, "%s\n--%s--\n", text, boundary)
	return b.Bytes()
}
