package bench

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"postern/internal/dkimsig"
	"postern/internal/dnstest"
	"postern/internal/postfixtest"
)

// letterBody is 10 kB.
var letterBody = strings.Repeat("Dear Bob, this is a line as they stand in letters of this kind.\r\n", 150)

// signedLetter returns a letter with a signature by RSA with 2048 bits, fields as
// a milter sees them, and the text of the key record.
func signedLetter(t *testing.T, key *rsa.PrivateKey) (fields []string, record string) {
	t.Helper()
	fields = []string{
		"Received: from inside.example.org (inside.example.org [198.51.100.9])\n\tby mail.example.org with ESMTPS id 1234567890\n\tfor <bob@example.com>; Thu, 1 Jan 2026 00:00:00 +0000",
		"From: Ann Example <ann@example.org>", "To: Bob Example <bob@example.com>", "Subject: the minutes of our meeting last week", "Date: Thu, 1 Jan 2026 00:00:00 +0000",
		"Message-ID: <20260101000000.1234@mail.example.org>", "MIME-Version: 1.0", "Content-Type: text/plain; charset=utf-8",
	}
	body := dkimsig.NewBody(dkimsig.Relaxed, -1)
	body.Write([]byte(letterBody))
	sum := body.Sum()
	own := "DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=sel; h=From:To:Subject:Date:Message-ID:MIME-Version:Content-Type:From; bh=" +
		base64.StdEncoding.EncodeToString(sum[:]) + "; b="
	header := dkimsig.NewFields(strings.ReplaceAll(strings.Join(fields, "\r\n"), "\n\t", "\r\n\t") + "\r\n")
	sig, err := dkimsig.Sign(key, header.Hash(strings.Split("From:To:Subject:Date:Message-ID:MIME-Version:Content-Type:From", ":"), dkimsig.Relaxed, dkimsig.Field(own+"\r\n")))
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{own + base64.StdEncoding.EncodeToString(sig)}, fields...), "v=DKIM1; k=rsa; p=" + base64.StdEncoding.EncodeToString(public)
}

// threadTime is the processor time of this thread.
func threadTime() time.Duration {
	var ts syscall.Timespec
	const clockThread = 3 // CLOCK_THREAD_CPUTIME_ID
	if _, _, e := syscall.Syscall(syscall.SYS_CLOCK_GETTIME, clockThread, uintptr(unsafe.Pointer(&ts)), 0); e != 0 {
		panic(e)
	}
	return time.Duration(ts.Nano())
}

// costOf returns the processor time of f.
func costOf(f func()) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	const n = 5000
	begin := threadTime()
	for range n {
		f()
	}
	return (threadTime() - begin) / n
}

// opendkim starts it with these settings and a socket.
func opendkim(t *testing.T, socket, settings string) *child {
	t.Helper()
	postfixtest.Require(t, "opendkim")
	conf := socket + ".conf"
	write(t, conf, "Socket local:"+socket+"\nBackground no\nSyslog no\nUMask 000\nRequireSafeKeys no\n"+settings)
	cmd := exec.Command("opendkim", "-f", "-x", conf)
	var said strings.Builder
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }() // how it ended does not matter
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	for end := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		if c, err := net.Dial("unix", socket); err == nil {
			_ = c.Close()
			return &child{cmd: cmd}
		}
		select {
		case <-ended:
			t.Fatalf("opendkim has ended: %s", said.String())
		default:
		}
		if time.Now().After(end) {
			t.Fatalf("opendkim does not listen: %s", said.String())
		}
	}
}

// authFigures measures what verifying costs beside opendkim, in the same run, and
// beside the bare cryptography.
func authFigures(t *testing.T, dir string, dns *dnstest.Server) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	fields, record := signedLetter(t, key)
	dns.Add(fmt.Sprintf("sel._domainkey.example.org. 3600 IN TXT %q %q", record[:200], record[200:]), `_dmarc.example.org. 3600 IN TXT "v=DMARC1; p=reject"`,
		`example.org. 3600 IN TXT "v=spf1 ip4:192.0.2.0/24 -all"`)
	sum := sha256.Sum256([]byte(letterBody))
	sig, err := dkimsig.Sign(key, sum)
	if err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(dir, "keys")
	write(t, keys, "sel._domainkey.example.org "+record+"\n")

	// The floor is the same daemon, which does not look at mail of this client.
	fl, ours, theirs := filepath.Join(dir, "auth-f.sock"), filepath.Join(dir, "auth-m.sock"), filepath.Join(dir, "opendkim.sock")
	daemonOf := func(name, socket, more string) *child {
		p := writeConfig(t, dir, name, dns.Addr(), fmt.Sprintf("[store]\nkind = \"memory\"\n[milter]\nlisten = [\"unix:%s\"]\n[known]\nmode = \"off\"\n%s", socket, more))
		return start(t, "daemon", p.config)
	}
	floor := daemonOf("authfloor", fl, "[auth]\nmode = \"enforce\"\nskip = [\"198.51.100.7\"]\n")
	d := daemonOf("auth", ours, "[auth]\nmode = \"enforce\"\n")
	peer := opendkim(t, theirs, "Mode v\nTestPublicKeys "+keys+"\nAuthservID mx.example.com\n")
	letter := sessionOf("198.51.100.7", fields, letterBody)
	beside(t, "verifying, SPF and DMARC with it", letter, floor, d, peer, fl, ours, theirs, func() {
		if sha256.Sum256([]byte(letterBody)) != sum || rsa.VerifyPKCS1v15(&key.PublicKey, crypto.SHA256, sum[:], sig) != nil {
			t.Error("not valid")
		}
	})
	d.stop()
	floor.stop()
}

// beside measures a daemon that adds a field to each letter beside one that looks
// at none, opendkim, and the bare cryptography of it.
func beside(t *testing.T, what string, letter []event, floor, d, peer *child, fl, ours, theirs string, cryptography func()) {
	t.Helper()
	var bare, floorCost, ourCost, theirCost, ratios, rates []float64
	for range rounds {
		bare = append(bare, float64(costOf(cryptography).Nanoseconds())/1000)
		cost := func(c *child, socket string, changes int) (rate, micros float64) {
			used := c.cpu(t)
			rate = milterLoadOf(t, socket, letter, changes)
			return rate, float64((c.cpu(t) - used).Microseconds()) / (rate * roundTime.Seconds())
		}
		_, micros := cost(floor, fl, 0)
		floorCost = append(floorCost, micros)
		rate, micros := cost(d, ours, 1)
		ourCost = append(ourCost, micros)
		other, micros := cost(peer, theirs, 1)
		theirCost = append(theirCost, micros)
		rates, ratios = append(rates, rate), append(ratios, rate/other)
	}
	b := median(bare)
	t.Logf("%-42s %.1f µs of processor time, a daemon that does nothing of the kind %.1f µs for a letter", "the bare cryptography", b, median(floorCost))
	t.Logf("%-42s %.2f times opendkim's rate (%.0f letters/s); %.1f µs of processor time each, opendkim %.1f µs; more than a daemon that does nothing of the kind: %.1f µs, %.2f of the bare cryptography", what,
		median(ratios), median(rates), median(ourCost), median(theirCost), median(ourCost)-median(floorCost), (median(ourCost)-median(floorCost))/b)
}
