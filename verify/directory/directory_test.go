package directory

import (
	"context"
	"crypto/x509"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-ldap/ldap/v3"

	"postern/internal/conf"
	"postern/internal/ldaptest"
	"postern/internal/mailaddr"
	"postern/verify/callout"
)

var people = ldaptest.Person("ann", "ann@example.org", "info@example.org", "a(b)*c@example.org") +
	ldaptest.Person("bob", "bob@example.org")

func config(s *ldaptest.Server) Config {
	return Config{Name: "corp", URLs: []string{s.URL()}, BindDN: ldaptest.BindDN, PasswordFile: "x", Base: ldaptest.Base}
}

func open(t *testing.T, cfg Config) *Directory {
	t.Helper()
	roots, err := callout.LoadRoots(cfg.CAFile)
	if err != nil {
		t.Fatal(err)
	}
	d := New(cfg, ldaptest.Password, roots)
	t.Cleanup(d.Close)
	return d
}

func TestAsk(t *testing.T) {
	s := ldaptest.Start(t, people)
	d := open(t, config(s))
	for address, want := range map[string]bool{
		"ann@example.org": true, "ANN@example.org": true, "info@example.org": true, "bob@example.org": true, "a(b)*c@example.org": true,
		"carl@example.org": false, "*@example.org": false, "ann@example.com": false, "ann*": false, `\2a@example.org`: false,
		"*)(mail=*@example.org": false,
	} {
		dn, found, err := d.Ask(t.Context(), mailaddr.Parse(address))
		if err != nil || found != want || found != (dn != "") {
			t.Errorf("%s: %q %v, %v", address, dn, found, err)
		}
	}
	if st := d.Status(); !st.Healthy || st.Asked != 11 || st.Server != s.URL() {
		t.Errorf("%+v", st)
	}
}

func TestFilterAndAttribute(t *testing.T) {
	s := ldaptest.Start(t, people+"dn: cn=carl,"+ldaptest.Base+"\nobjectClass: inetOrgPerson\ncn: carl\nsn: carl\nuid: carl\n\n")
	cfg := config(s)
	cfg.Filter, cfg.Attribute = "(|(uid={user})(cn={user}))", "proxyaddresses"
	d := open(t, cfg)
	for address, want := range map[string]bool{"ann@example.org": true, "carl@example.org": false, "dora@example.org": false} {
		if _, found, err := d.Ask(t.Context(), mailaddr.Parse(address)); found != want || err != nil {
			t.Errorf("%s: %v, %v", address, found, err)
		}
	}
}

func TestTLS(t *testing.T) {
	s := ldaptest.Start(t, people)
	ask := func(change func(*Config)) error {
		cfg := config(s)
		change(&cfg)
		_, found, err := open(t, cfg).Ask(t.Context(), mailaddr.Parse("ann@example.org"))
		if err == nil && !found {
			t.Error("not found")
		}
		return err
	}
	for name, change := range map[string]func(*Config){
		"starttls": func(c *Config) { c.StartTLS, c.CAFile = true, s.CertFile },
		"ldaps":    func(c *Config) { c.URLs, c.CAFile = []string{s.TLSURL()}, s.CertFile },
	} {
		if err := ask(change); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, change := range map[string]func(*Config){
		"starttls, not trusted": func(c *Config) { c.StartTLS = true },
		"ldaps, not trusted":    func(c *Config) { c.URLs = []string{s.TLSURL()} },
	} {
		if err := ask(change); err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := ask(func(c *Config) { c.BindDN = "cn=nobody," + ldaptest.Base }); err == nil || !strings.Contains(err.Error(), "bind as") {
		t.Errorf("a wrong name: %v", err)
	}
}

func TestServerGoesAndComes(t *testing.T) {
	s := ldaptest.Start(t, people)
	cfg := config(s)
	cfg.Timeout = conf.Duration(300 * time.Millisecond)
	d := open(t, cfg)
	ask := func() (bool, error) {
		_, found, err := d.Ask(t.Context(), mailaddr.Parse("ann@example.org"))
		return found, err
	}
	if found, err := ask(); !found || err != nil {
		t.Fatal(found, err)
	}
	s.Stop()
	if _, err := ask(); err == nil || d.Status().Healthy {
		t.Errorf("with the server gone: %v, %+v", err, d.Status())
	}
	s.Restart()
	if found, err := ask(); !found || err != nil {
		t.Errorf("after its return: %v, %v", found, err)
	}
	s.Hang()
	if _, err := ask(); err == nil {
		t.Error("an answer from a server that hangs")
	}
	s.Continue()
	if found, err := ask(); !found || err != nil {
		t.Errorf("after it hung: %v, %v", found, err)
	}
	// A second server stands in.
	other := ldaptest.Start(t, people)
	cfg.URLs = append(cfg.URLs, other.URL())
	two := open(t, cfg)
	s.Stop()
	if _, found, err := two.Ask(t.Context(), mailaddr.Parse("ann@example.org")); !found || err != nil || two.Status().Server != other.URL() {
		t.Errorf("the second server: %v, %v, %+v", found, err, two.Status())
	}
}

func TestManyAtOnce(t *testing.T) {
	s := ldaptest.Start(t, people)
	d := open(t, config(s))
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, found, err := d.Ask(t.Context(), mailaddr.Parse("bob@example.org")); !found || err != nil {
				t.Error(found, err)
			}
		})
	}
	wg.Wait()
	d.mu.Lock()
	n := len(d.idle)
	d.mu.Unlock()
	if n > 4 {
		t.Errorf("%d connections kept, 4 allowed", n)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := d.Ask(ctx, mailaddr.Parse("bob@example.org")); err == nil {
		t.Error("asked for nobody")
	}
}

func TestConfigFaults(t *testing.T) {
	roots := func(path string) (*x509.CertPool, error) { return callout.LoadRoots(path) }
	var fs conf.Faults
	ok := Config{Name: "corp", URLs: []string{"ldap://a.example", "ldapi:///run/slapd"}, StartTLS: true, Base: "dc=example"}
	ok.Validate("verify.ldap[0]", roots, &fs)
	if len(fs) > 0 {
		t.Fatal(fs)
	}
	bad := Config{
		URLs: []string{"http://x", "ldap://a.example/dc=x", "ldaps://"}, CAFile: "/nowhere", BindDN: "cn=x", Base: "nonsense",
		Scope: "all", Filter: "(mail={address}", Timeout: 1, Connections: -1,
	}
	bad.Validate("verify.ldap[0]", roots, &fs)
	text := fs.Error()
	for _, key := range []string{"name", "urls[0]", "urls[1]", "urls[2]", "ca_file", "bind_dn", "base", "scope", "filter", "timeout", "connections"} {
		if !strings.Contains(text, "verify.ldap[0]."+key+":") {
			t.Errorf("no fault for %s in\n%s", key, text)
		}
	}
	same := Config{Name: "x", URLs: []string{"ldap://a"}, Base: "dc=x", Filter: "(objectClass=*)"}
	fs = nil
	same.Validate("v", roots, &fs)
	if len(fs) != 1 {
		t.Errorf("a filter that is the same for everybody: %v", fs)
	}
}

// TestMoreEntriesThanAsked: what was left out may have the attribute.
func TestMoreEntriesThanAsked(t *testing.T) {
	ldif := ""
	for _, name := range []string{"one", "two"} {
		ldif += "dn: cn=" + name + "," + ldaptest.Base + "\nobjectClass: inetOrgPerson\ncn: " + name + "\nsn: team\n\n"
	}
	ldif += "dn: cn=three," + ldaptest.Base + "\nobjectClass: inetOrgPerson\ncn: three\nsn: team\nmail: team@example.org\n\n"
	s := ldaptest.Start(t, ldif)
	cfg := config(s)
	cfg.Filter, cfg.Attribute = "(sn={user})", "mail"
	if _, found, err := open(t, cfg).Ask(t.Context(), mailaddr.Parse("team@example.org")); !found && err == nil {
		t.Error("unknown, though one of three entries has the attribute")
	}
}

// TestServerThatGoesDown says "unavailable" on the connections that it has: the
// other server is asked.
func TestServerThatGoesDown(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // a test
	answers := make(chan byte, 8)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close() //nolint:errcheck // a test
				for {
					head := make([]byte, 2)
					if _, err := io.ReadFull(c, head); err != nil {
						return
					}
					n := int(head[1])
					if n > 0x80 { // the length stands behind
						more := make([]byte, n-0x80)
						_, _ = io.ReadFull(c, more)
						n = 0
						for _, b := range more {
							n = n<<8 | int(b)
						}
					}
					body := make([]byte, n)
					if _, err := io.ReadFull(c, body); err != nil || body[3] == 0x42 { // unbind
						return
					}
					op, code := body[3]+1, byte(0)
					if body[3] == 0x63 { // a search
						op, code = 0x65, <-answers
					}
					_, _ = c.Write([]byte{0x30, 12, 2, 1, body[2], op, 7, 10, 1, code, 4, 0, 4, 0})
				}
			})
		}
	})
	defer l.Close() //nolint:errcheck // a test
	other := ldaptest.Start(t, people)
	cfg := config(other)
	cfg.URLs = []string{"ldap://" + l.Addr().String(), other.URL()}
	d := open(t, cfg)
	defer d.Close()
	ask := func() (bool, error) {
		_, found, err := d.Ask(t.Context(), mailaddr.Parse("ann@example.org"))
		return found, err
	}
	answers <- ldap.LDAPResultSuccess
	if found, err := ask(); found || err != nil {
		t.Fatal(found, err)
	}
	answers <- ldap.LDAPResultUnavailable // on the connection kept
	answers <- ldap.LDAPResultUnavailable // on a new one
	if found, err := ask(); !found || err != nil {
		t.Errorf("with one server going down: %v, %v", found, err)
	}
}
