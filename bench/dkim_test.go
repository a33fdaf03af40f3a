package bench

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"path/filepath"
	"testing"

	"postern/internal/dkimsig"
	"postern/internal/dnstest"
)

// dkimFigures measures what signing costs beside opendkim, in the same run, and
// beside the bare cryptography.
func dkimFigures(t *testing.T, dir string, dns *dnstest.Server) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "dkim.pem")
	write(t, file, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	signed, record := signedLetter(t, key)
	dns.Add(fmt.Sprintf("sign._domainkey.example.org. 3600 IN TXT %q %q", record[:200], record[200:]))
	letter := sessionOf("198.51.100.7", signed[1:], letterBody)

	fl, ours, theirs := filepath.Join(dir, "dkim-f.sock"), filepath.Join(dir, "dkim-m.sock"), filepath.Join(dir, "opendkim-s.sock")
	daemonOf := func(name, socket, network string) *child {
		p := writeConfig(t, dir, name, dns.Addr(), fmt.Sprintf("[store]\nkind = \"memory\"\n[milter]\nlisten = [\"unix:%s\"]\n[known]\nmode = \"off\"\n"+
			"[dkim]\nmode = \"enforce\"\nnetworks = [\"%s\"]\n[[dkim.domain]]\ndomain = \"example.org\"\n[[dkim.domain.key]]\nselector = \"sign\"\nfile = \"%s\"\n", socket, network, file))
		return start(t, "daemon", p.config)
	}
	hosts := filepath.Join(dir, "internal.hosts")
	write(t, hosts, "198.51.100.7\n")
	// Likewise the floor does not look at mail of this client.
	floor, d := daemonOf("dkimfloor", fl, "192.0.2.1/32"), daemonOf("dkim", ours, "198.51.100.7/32")
	peer := opendkim(t, theirs, "Mode s\nCanonicalization relaxed/relaxed\nOversignHeaders From\nDomain example.org\nSelector sign\nKeyFile "+file+"\nInternalHosts "+hosts+"\n")
	beside(t, "signing", letter, floor, d, peer, fl, ours, theirs, func() {
		sum := sha256.Sum256([]byte(letterBody))
		if _, err := dkimsig.Sign(crypto.Signer(key), sum); err != nil {
			t.Error(err)
		}
	})
	d.stop()
	floor.stop()
}
