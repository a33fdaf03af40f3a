package console

import (
	"crypto/tls"
	"fmt"
	"sync"
	"time"

	"postern/internal/filestamp"
)

// certificate is a certificate that is read again when its files change.
type certificate struct {
	certFile, keyFile string

	mu        sync.Mutex
	looked    time.Time
	cert, key filestamp.Stamp
	pair      *tls.Certificate
}

// lookEvery is how often the files are looked at, when somebody connects.
const lookEvery = 10 * time.Second

func newCertificate(certFile, keyFile string) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile}
	return c, c.read(time.Now())
}

func (c *certificate) read(now time.Time) error {
	c.looked = now
	cert, key := filestamp.Of(c.certFile), filestamp.Of(c.keyFile)
	if c.pair != nil && c.cert.Same(cert) && c.key.Same(key) {
		return nil
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("the certificate cannot be used: %w", err)
	}
	c.cert, c.key, c.pair = cert, key, &pair
	return nil
}

// get is for [tls.Config]. While new files are no pair, the old one stays.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.looked) >= lookEvery {
		_ = c.read(now) // the next look may find both files written
	}
	return c.pair, nil
}
