package aggregate

import (
	"archive/zip"
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"mime/quotedprintable"
	"net/mail"
	"strings"
)

const (
	maxParts = 1000 // of a mail, a mailbox or an archive
	maxNest  = 6
)

var (
	errNothing = errors.New("there is no report in it")
	errDeep    = errors.New("too many files inside each other")
	errMany    = fmt.Errorf("more than %d files in it", maxParts)
)

// Read calls each for every report in a file: XML, gzip, zip, a mail with such
// attachments, or a mailbox of them. name stands for the file in errors, with
// what is inside of it. What cannot be read is given to fault, and the rest is
// read all the same.
func Read(name string, in io.Reader, each func(name string, r *Report), fault func(error)) {
	usual.read(name, in, each, fault)
}

func (b *bounds) read(name string, in io.Reader, each func(name string, r *Report), fault func(error)) {
	found := reader{bounds: b, each: each, fault: func(name string, err error) { fault(fmt.Errorf("%s: %w", name, err)) }}
	found.look(name, in, 0)
	if !found.some {
		found.fault(name, errNothing)
	}
}

type reader struct {
	*bounds
	each  func(string, *Report)
	fault func(string, error)
	some  bool // something was found, or is faulty
	parts int
	spent int64 // bytes that were unpacked
}

// fail says that a part cannot be read.
func (r *reader) fail(name string, err error) {
	r.some = true
	r.fault(name, err)
}

// look looks at one file by how it begins.
func (r *reader) look(name string, in io.Reader, depth int) {
	if depth > maxNest {
		r.fail(name, errDeep)
		return
	}
	if r.parts++; r.parts > maxParts {
		if r.parts == maxParts+1 {
			r.fail(name, errMany)
		}
		return
	}
	b := bufio.NewReaderSize(in, 4096)
	head, err := b.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
		r.fail(name, err)
		return
	}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		r.gzip(name, b, depth)
	case bytes.HasPrefix(head, []byte("PK\x03\x04")):
		r.zip(name, b, depth)
	case looksLikeXML(head):
		report, err := r.parse(b)
		if err != nil {
			r.fail(name, err)
			return
		}
		r.some = true
		r.each(name, report)
	case bytes.HasPrefix(head, []byte("From ")):
		r.mailbox(name, b, depth)
	case looksLikeMail(head):
		r.mail(name, b, depth)
	case depth == 0:
		r.fail(name, errNothing)
	}
}

func (r *reader) gzip(name string, in io.Reader, depth int) {
	z, err := gzip.NewReader(in)
	if err != nil {
		r.fail(name, err)
		return
	}
	r.look(name, &bounded{in: z, r: r}, depth+1)
}

func (r *reader) zip(name string, in io.Reader, depth int) {
	all, err := r.all(in)
	if err != nil {
		r.fail(name, err)
		return
	}
	z, err := zip.NewReader(bytes.NewReader(all), int64(len(all)))
	if err != nil {
		r.fail(name, err)
		return
	}
	for _, f := range z.File {
		if f.FileInfo().IsDir() {
			continue
		}
		inner := name + "/" + f.Name
		c, err := f.Open()
		if err != nil {
			r.fail(inner, err)
			continue
		}
		r.look(inner, &bounded{in: c, r: r}, depth+1)
		_ = c.Close() // it was read
	}
}

// mailbox parts a file of mails at its "From " lines.
func (r *reader) mailbox(name string, in io.Reader, depth int) {
	all, err := r.all(in)
	if err != nil {
		r.fail(name, err)
		return
	}
	for i, one := range bytes.Split(append([]byte("\n"), all...), []byte("\nFrom ")) {
		if i > 0 {
			_, one, _ = bytes.Cut(one, []byte("\n"))
			r.mail(fmt.Sprintf("%s/%d", name, i), bytes.NewReader(one), depth+1)
		}
	}
}

// looksLikeXML tells it by the first character, behind the mark of a Unicode
// encoding.
func looksLikeXML(head []byte) bool {
	for _, mark := range []string{"\xef\xbb\xbf", "\xff\xfe", "\xfe\xff\x00"} {
		head = bytes.TrimPrefix(head, []byte(mark))
	}
	return bytes.HasPrefix(bytes.TrimLeft(head, " \t\r\n"), []byte("<"))
}

func looksLikeMail(head []byte) bool {
	line, _, _ := bytes.Cut(head, []byte("\n"))
	name, _, found := bytes.Cut(line, []byte(":"))
	return found && len(name) > 0 && !bytes.ContainsAny(name, " \t<>")
}

func (r *reader) mail(name string, in io.Reader, depth int) {
	m, err := mail.ReadMessage(&bounded{in: in, r: r})
	if err != nil {
		r.fail(name, err)
		return
	}
	r.part(name, m.Header.Get("Content-Type"), m.Header.Get("Content-Transfer-Encoding"), m.Body, depth)
}

// part reads one part of a mail; what is no report, such as the text that goes
// with one, is passed over.
func (r *reader) part(name, kind, encoding string, body io.Reader, depth int) {
	if depth > maxNest {
		r.fail(name, errDeep)
		return
	}
	media, params, err := mime.ParseMediaType(kind)
	if err == nil && strings.HasPrefix(media, "multipart/") && params["boundary"] != "" {
		parts := multipart.NewReader(body, params["boundary"])
		for n := 0; n < maxParts; n++ {
			p, err := parts.NextRawPart()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				r.fail(name, err)
				return
			}
			inner := name
			if file := p.FileName(); file != "" {
				inner += "/" + file
			}
			r.part(inner, p.Header.Get("Content-Type"), p.Header.Get("Content-Transfer-Encoding"), p, depth+1)
		}
		return
	}
	switch strings.ToLower(strings.TrimSpace(encoding)) {
	case "base64":
		body = base64.NewDecoder(base64.StdEncoding, &lines{in: body})
	case "quoted-printable":
		body = quotedprintable.NewReader(body)
	}
	b := bufio.NewReaderSize(body, 4096)
	head, _ := b.Peek(64) // what cannot be read shows below
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}), bytes.HasPrefix(head, []byte("PK\x03\x04")):
	case looksLikeXML(head) && !strings.HasPrefix(media, "text/html"):
	case media == "message/rfc822":
		r.mail(name, b, depth+1)
		return
	default:
		return
	}
	r.look(name, b, depth+1)
}

// lines drops what does not belong to base64: some writers add white space and
// dots.
type lines struct{ in io.Reader }

func (l *lines) Read(p []byte) (int, error) {
	n, err := l.in.Read(p)
	kept := 0
	for _, c := range p[:n] {
		if c > ' ' {
			p[kept] = c
			kept++
		}
	}
	return kept, err
}

// bounded fails once too many bytes of it, or of all, have come.
type bounded struct {
	in io.Reader
	r  *reader
	n  int64
}

func (b *bounded) Read(p []byte) (int, error) {
	n, err := b.in.Read(p)
	b.n += int64(n)
	b.r.spent += int64(n)
	switch {
	case b.n > b.r.file:
		return 0, tooLarge(b.r.file)
	case b.r.spent > b.r.total:
		return 0, tooLarge(b.r.total)
	}
	return n, err
}

func (r *reader) all(in io.Reader) ([]byte, error) { return io.ReadAll(&bounded{in: in, r: r}) }
