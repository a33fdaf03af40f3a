package provider

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"strings"
	"syscall"

	"go.uber.org/zap"
)

// result returns what stands behind each network.
func (e *ExportConfig) result() string {
	if e.Result == "" {
		return "OK"
	}
	return e.Result
}

// cidr writes networks as a Postfix cidr_table(5).
func cidr(w io.Writer, list, result string, prefixes []netip.Prefix) error {
	var b bytes.Buffer
	fmt.Fprintf(&b, "# %d networks of %s, written by postern: do not edit\n", len(prefixes), list)
	for _, p := range prefixes {
		b.Write(p.AppendTo(b.AvailableBuffer()))
		b.WriteString("\t" + result + "\n")
	}
	_, err := w.Write(b.Bytes())
	return err
}

// export writes the files for Postfix that are not as they should be.
func (l *list) export() {
	s := l.snap.Load()
	if s == nil {
		return // what an earlier run wrote is better than nothing
	}
	var faults []error
	for i := range l.exports {
		e := &l.exports[i]
		var b bytes.Buffer
		_ = cidr(&b, l.cfg.Name, e.result(), s.prefixes) // a buffer takes everything
		switch written, err := e.write(b.Bytes()); {
		case err != nil:
			faults = append(faults, err)
			l.log.Error("a list could not be written for Postfix", zap.String("file", e.Path), zap.Error(err))
		case written:
			l.log.Info("list written for Postfix", zap.String("file", e.Path), zap.Int("networks", len(s.prefixes)))
		}
	}
	l.mu.Lock()
	l.exportErr = ""
	if err := errors.Join(faults...); err != nil {
		l.exportErr = err.Error()
	}
	l.mu.Unlock()
}

// write puts text in the file, unless it is there already. A reader sees the
// old file or the new one, never a part.
func (e *ExportConfig) write(text []byte) (written bool, err error) {
	mode, err := e.mode()
	if err != nil {
		return false, err
	}
	uid, gid, err := e.owner()
	if err != nil {
		return false, err
	}
	st, err := os.Lstat(e.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return false, err
	case !st.Mode().IsRegular():
		return false, fmt.Errorf("%s is not a regular file", e.Path)
	case st.Mode().Perm() == mode && owned(st, uid, gid) && st.Size() == int64(len(text)):
		old, err := os.ReadFile(e.Path)
		if err == nil && bytes.Equal(old, text) {
			return false, nil
		}
	}
	return true, writeFile(e.Path, text, mode, uid, gid)
}

// owned reports whether a file belongs to whom it should; -1 means anybody.
func owned(st os.FileInfo, uid, gid int) bool {
	s, ok := st.Sys().(*syscall.Stat_t)
	return !ok || (uid < 0 || int(s.Uid) == uid) && (gid < 0 || int(s.Gid) == gid)
}

// PostfixLines returns main.cf lines that use the list: by its exported files,
// and live over the lookup door, whose table name ("socketmap:unix:...:") is
// given, "" if there is none. They are proposals: each has its own use.
func (l *ListConfig) PostfixLines(lookup string) []string {
	var out []string
	for i := range l.Exports {
		e := &l.Exports[i]
		table := "cidr:" + e.Path
		if strings.EqualFold(e.result(), "permit") {
			out = append(out, "# exempt from postscreen's tests", "postscreen_access_list = permit_mynetworks, "+table)
			continue
		}
		out = append(out, use(table)...)
	}
	if len(l.Exports) > 0 {
		out = append(out, "# Postfix reads cidr: files again when its processes end, or at \"postfix reload\"")
	}
	if lookup != "" {
		out = append(out, "# live, without any reload")
		out = append(out, use(lookup+l.Name)...)
	}
	return out
}

func use(table string) []string {
	return []string{
		"# an answer of OK ends the list of restrictions it stands in: put it where that is meant",
		"smtpd_client_restrictions = check_client_access " + table,
		"# every customer of the provider may relay with this line: see docs/providers.md before you use it",
		"#mynetworks = 127.0.0.0/8, [::1]/128, " + table,
	}
}
