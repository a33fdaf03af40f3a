package console

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" //nolint:gosec // what RFC 6238 and every authenticator use
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"net/url"
	"strings"
	"time"
)

// Time-based one-time passwords: RFC 6238 with SHA-1, six digits and steps of 30
// seconds, which is what authenticators take.
const (
	totpStep   = 30 * time.Second
	totpDigits = 6
	totpSecret = 20
	// totpDrift is how many steps the clocks may differ.
	totpDrift = 1
)

var base32Text = base32.StdEncoding.WithPadding(base32.NoPadding)

// NewTOTP returns a new secret, in base32.
func NewTOTP() string {
	secret := make([]byte, totpSecret)
	_, _ = rand.Read(secret) // it never fails
	return base32Text.EncodeToString(secret)
}

// TOTPLink returns the link that authenticators take.
func TOTPLink(host, name, secret string) string {
	label := url.PathEscape("postern " + host + ":" + name)
	return "otpauth://totp/" + label + "?" + url.Values{"secret": {secret}, "issuer": {"postern " + host}}.Encode()
}

func parseTOTP(text string) ([]byte, error) {
	secret, err := base32Text.DecodeString(strings.ToUpper(text))
	if err != nil || len(secret) < 10 || len(secret) > 64 {
		return nil, fmt.Errorf("the secret of the one-time passwords is no base32 of 10 to 64 bytes")
	}
	return secret, nil
}

// TOTPCode is the one-time password of a moment; the secret is that of the users
// file.
func TOTPCode(secret string, at time.Time) (string, error) {
	key, err := parseTOTP(secret)
	if err != nil {
		return "", err
	}
	return totpCode(key, stepOf(at)), nil
}

func stepOf(at time.Time) int64 { return at.Unix() / int64(totpStep/time.Second) }

func totpCode(secret []byte, step int64) string {
	mac := hmac.New(sha1.New, secret)
	_ = binary.Write(mac, binary.BigEndian, step) // a hash takes everything
	sum := mac.Sum(nil)
	n := binary.BigEndian.Uint32(sum[sum[len(sum)-1]&15:]) & 0x7fffffff
	return fmt.Sprintf("%0*d", totpDigits, n%1_000_000)
}

// matchTOTP returns the step whose code it is, later than after.
func matchTOTP(secret []byte, code string, now time.Time, after int64) (step int64, ok bool) {
	for step := stepOf(now) - totpDrift; step <= stepOf(now)+totpDrift; step++ {
		if subtle.ConstantTimeCompare([]byte(totpCode(secret, step)), []byte(code)) == 1 && step > after {
			return step, true
		}
	}
	return 0, false
}
