// Package ldaptest runs a real OpenLDAP server (slapd) for tests.
package ldaptest

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"postern/internal/certtest"
	"postern/internal/proctest"
)

// What every server has.
const (
	Base     = "dc=example,dc=org"
	BindDN   = "cn=reader,dc=example,dc=org"
	Password = "not so secret"
)

// Server is a running slapd.
type Server struct {
	t        testing.TB
	dir      string
	port     string
	tlsPort  string
	cmd      *exec.Cmd
	CertFile string // of the authority to trust
}

const setup = `modulepath /usr/lib/ldap
moduleload back_mdb
include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
attributetype ( 1.3.6.1.4.1.99999.1 NAME 'proxyAddresses' EQUALITY caseIgnoreMatch SYNTAX 1.3.6.1.4.1.1466.115.121.1.15 )
objectclass ( 1.3.6.1.4.1.99999.2 NAME 'exchangeUser' SUP top AUXILIARY MAY proxyAddresses )
pidfile {dir}/pid
argsfile {dir}/args
TLSCertificateFile {cert}
TLSCertificateKeyFile {key}
disallow bind_anon
require authc
database mdb
maxsize 10485760
suffix "dc=example,dc=org"
rootdn "cn=reader,dc=example,dc=org"
rootpw "not so secret"
directory {dir}/db
`

// Start runs a server with the entries, LDIF below Base, until the test ends.
// Where slapd is not installed the test is skipped, or fails with CI=true.
func Start(t testing.TB, ldif string) *Server {
	t.Helper()
	slapd := find(t, "slapd")
	dir, err := os.MkdirTemp("/tmp", "pl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) }) // best effort
	if err := os.Mkdir(filepath.Join(dir, "db"), 0o700); err != nil {
		t.Fatal(err)
	}
	pair := certtest.New(t, "ldap.example.org")
	conf := strings.NewReplacer("{dir}", dir, "{cert}", pair.CertFile, "{key}", pair.KeyFile).Replace(setup)
	top := "dn: dc=example,dc=org\nobjectClass: dcObject\nobjectClass: organization\ndc: example\no: Example\n\n"
	for name, text := range map[string]string{"slapd.conf": conf, "data.ldif": top + ldif} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	add := exec.Command(find(t, "slapadd"), "-f", filepath.Join(dir, "slapd.conf"), "-l", filepath.Join(dir, "data.ldif"))
	if out, err := add.CombinedOutput(); err != nil {
		t.Fatalf("slapadd: %v\n%s", err, out)
	}
	s := &Server{t: t, dir: dir, port: free(t), tlsPort: free(t), CertFile: pair.CertFile}
	s.cmd = exec.Command(slapd, "-f", filepath.Join(dir, "slapd.conf"), "-d", "0", "-h", s.URL()+" "+s.TLSURL())
	t.Cleanup(s.Stop)
	s.run()
	return s
}

func find(t testing.TB, program string) string {
	t.Helper()
	for _, p := range []string{program, "/usr/sbin/" + program} {
		if path, err := exec.LookPath(p); err == nil {
			return path
		}
	}
	if os.Getenv("CI") == "true" {
		t.Fatalf("%s is not installed (scripts/deps.sh does it)", program)
	}
	t.Skipf("%s is not installed: this test asks a real OpenLDAP", program)
	return ""
}

func free(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return port
}

// URL returns ldap://127.0.0.1:port, TLSURL the same for ldaps.
func (s *Server) URL() string { return "ldap://127.0.0.1:" + s.port }

// TLSURL returns ldaps://127.0.0.1:port.
func (s *Server) TLSURL() string { return "ldaps://127.0.0.1:" + s.tlsPort }

func (s *Server) run() {
	s.t.Helper()
	cmd := exec.Command(s.cmd.Path, s.cmd.Args[1:]...)
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.cmd = cmd
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("tcp", "127.0.0.1:"+s.port)
		if err == nil {
			_ = c.Close() // it was only to see
			return
		}
		if time.Now().After(end) {
			s.t.Fatalf("slapd does not answer: %v", err)
		}
	}
}

// Stop ends the server. It can be called twice.
func (s *Server) Stop() {
	if s.cmd.Process == nil || s.cmd.ProcessState != nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGCONT) // it may hang
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	_ = s.cmd.Wait() // ended by us
}

// Restart starts the server again after Stop.
func (s *Server) Restart() { s.run() }

// Hang stops the process without closing anything, until Continue.
func (s *Server) Hang() { s.t.Helper(); proctest.Freeze(s.t, s.cmd.Process.Pid) }

// Continue undoes Hang.
func (s *Server) Continue() { s.t.Helper(); proctest.Thaw(s.t, s.cmd.Process.Pid) }

// Person writes one entry with its addresses; the first is mail, all are
// proxyAddresses as Active Directory has them.
func Person(name string, addresses ...string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "dn: cn=%s,%s\nobjectClass: inetOrgPerson\nobjectClass: exchangeUser\ncn: %s\nsn: %s\n", name, Base, name, name)
	for i, a := range addresses {
		kind := "smtp"
		if i == 0 {
			kind = "SMTP"
			fmt.Fprintf(&b, "mail: %s\n", a)
		}
		fmt.Fprintf(&b, "proxyAddresses: %s:%s\n", kind, a)
	}
	b.WriteString("\n")
	return b.String()
}
