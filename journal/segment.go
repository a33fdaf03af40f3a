package journal

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/klauspost/compress/zstd"
)

// A segment is a file of blocks, behind segmentMagic. A block is
//
//	magic          4 bytes, blockMagic
//	header length  4 bytes, little endian as all numbers
//	data length    4 bytes
//	header sum     4 bytes, CRC-32C of both lengths and the header
//	data sum       4 bytes, CRC-32C of the data
//	header         varints: oldest and newest time, entries, length of the data
//	               when it is unpacked; then the filter
//	data           zstd; unpacked it is entries, one after the other
//
// A file that ends within a block was being written when the process or the
// machine died: what stands before that block is whole. Somewhere else a block
// whose sums are wrong is passed over.
const (
	segmentMagic = "postern journal 1\n"
	blockMagic   = "\xf1PJ\x1e"
	blockPrefix  = 20

	suffix = ".journal"

	maxHeader = 1 << 20
	maxData   = 16 << 20
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is what a block says of itself.
type header struct {
	oldest, newest int64 // nanoseconds
	entries        int
	unpacked       int
	filter         bloom
}

func (h *header) append(b []byte) []byte {
	b = binary.AppendVarint(b, h.oldest)
	b = binary.AppendVarint(b, h.newest)
	b = binary.AppendUvarint(b, uint64(h.entries))
	b = binary.AppendUvarint(b, uint64(h.unpacked))
	return append(b, h.filter...)
}

func (h *header) parse(b []byte) error {
	for _, to := range []*int64{&h.oldest, &h.newest} {
		v, n := binary.Varint(b)
		if n <= 0 {
			return errBroken
		}
		*to, b = v, b[n:]
	}
	for _, to := range []*int{&h.entries, &h.unpacked} {
		v, n := binary.Uvarint(b)
		if n <= 0 || v > maxData {
			return errBroken
		}
		*to, b = int(v), b[n:]
	}
	h.filter = bloom(b)
	return nil
}

// block gathers entries until they are written.
type block struct {
	raw    []byte
	hashes map[uint64]struct{}
	header
}

func (b *block) reset() {
	b.raw = b.raw[:0]
	if b.hashes == nil {
		b.hashes = make(map[uint64]struct{}, 4096)
	}
	clear(b.hashes)
	b.header = header{oldest: math.MaxInt64, newest: math.MinInt64}
}

// add appends an entry, and returns its JSON.
func (b *block) add(k *keys, v any) (text []byte, err error) {
	at := 0
	if b.raw, at, err = appendEntry(b.raw, k, v); err != nil {
		return nil, err
	}
	b.entries++
	b.oldest, b.newest = min(b.oldest, k.time), max(b.newest, k.time)
	k.eachHash(func(h uint64) { b.hashes[h] = struct{}{} })
	return b.raw[at:], nil
}

// pack appends the block in the form of the file.
func (b *block) pack(out []byte, enc *zstd.Encoder) []byte {
	b.unpacked, b.filter = len(b.raw), newBloom(b.hashes)
	start := len(out)
	out = append(out, blockMagic...)
	out = append(out, make([]byte, blockPrefix-len(blockMagic))...)
	out = b.header.append(out)
	head := len(out) - start - blockPrefix
	out = enc.EncodeAll(b.raw, out)
	p := out[start:]
	data := p[blockPrefix+head:]
	binary.LittleEndian.PutUint32(p[4:], uint32(head))
	binary.LittleEndian.PutUint32(p[8:], uint32(len(data)))
	binary.LittleEndian.PutUint32(p[12:], headerSum(p[4:12], p[blockPrefix:blockPrefix+head]))
	binary.LittleEndian.PutUint32(p[16:], crc32.Checksum(data, castagnoli))
	return out
}

func headerSum(lengths, header []byte) uint32 {
	return crc32.Update(crc32.Checksum(lengths, castagnoli), castagnoli, header)
}

// place is a block in a segment.
type place struct {
	header
	segment *segment
	start   int64
	at      int64 // where its data begins
	size    int
	sum     uint32
}

// segment is a file.
type segment struct {
	path   string
	number uint64
	size   int64
}

// segments returns the segments of a directory in the order in which they were
// written. A directory that does not exist has none.
func segments(dir string) ([]*segment, error) {
	files, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	var out []*segment
	for _, f := range files {
		number, ok := numberOf(f.Name())
		if !ok {
			continue
		}
		info, err := f.Info()
		if err != nil {
			continue // it has just been removed
		}
		out = append(out, &segment{path: filepath.Join(dir, f.Name()), number: number, size: info.Size()})
	}
	slices.SortFunc(out, func(a, b *segment) int { return int(int64(a.number) - int64(b.number)) })
	return out, nil
}

func numberOf(name string) (uint64, bool) {
	digits, ok := strings.CutSuffix(name, suffix)
	if !ok || len(digits) != 10 {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 63)
	return n, err == nil
}

func nameOf(number uint64) string { return fmt.Sprintf("%010d%s", number, suffix) }

// scan is what came of reading through a segment.
type scan struct {
	end    int64 // behind the last whole block
	broken int   // places that could not be read, a torn end among them
	torn   bool  // nothing whole follows end, though the file goes on
}

// blocks calls f with each whole block of a segment; their data is not read.
// What cannot be read is passed over and counted.
func blocks(s *segment, r io.ReaderAt, size int64, f func(place)) (scan, error) {
	var out scan
	head := make([]byte, len(segmentMagic))
	if n, err := r.ReadAt(head, 0); n < len(head) || string(head) != segmentMagic {
		if n < len(head) && err != nil && !errors.Is(err, io.EOF) {
			return out, fmt.Errorf("journal: %s: %w", s.path, err)
		}
		out.broken, out.torn = 1, strings.HasPrefix(segmentMagic, string(head[:n]))
		return out, nil
	}
	at := int64(len(segmentMagic))
	out.end = at
	w := window{r: r, size: size}
	for at < size {
		p, ok := w.block(s, at)
		if !ok {
			out.broken++
			next := w.next(s, at+1)
			if next < 0 {
				out.torn = true
				break
			}
			at = next
			continue
		}
		f(p)
		at = p.at + int64(p.size)
		out.end = at
	}
	return out, w.err
}

// window reads a file by pieces.
type window struct {
	r    io.ReaderAt
	size int64
	buf  []byte
	at   int64
	err  error // the first, but for the end
}

const windowSize = 8 << 10

// bytes returns n bytes at a place, fewer at the end. They are valid until the
// next call.
func (w *window) bytes(at int64, n int) []byte {
	if at >= w.at && at+int64(n) <= w.at+int64(len(w.buf)) {
		return w.buf[at-w.at:][:n]
	}
	want := max(n, windowSize)
	if left := w.size - at; int64(want) > left {
		want = int(max(left, 0))
	}
	w.buf = slices.Grow(w.buf[:0], want)[:want]
	got, err := w.r.ReadAt(w.buf, at)
	if err != nil && !errors.Is(err, io.EOF) && w.err == nil {
		w.err = err
	}
	w.buf, w.at = w.buf[:got], at
	return w.buf[:min(n, got)]
}

// block reads the prefix and header of a block.
func (w *window) block(s *segment, at int64) (p place, ok bool) {
	b := w.bytes(at, blockPrefix)
	if len(b) < blockPrefix || string(b[:4]) != blockMagic {
		return p, false
	}
	head, data := binary.LittleEndian.Uint32(b[4:]), binary.LittleEndian.Uint32(b[8:])
	p.sum = binary.LittleEndian.Uint32(b[16:])
	p.segment, p.start, p.at, p.size = s, at, at+blockPrefix+int64(head), int(data)
	if head > maxHeader || data > maxData || p.at+int64(data) > w.size {
		return p, false
	}
	b = w.bytes(at, blockPrefix+int(head))
	if len(b) < blockPrefix+int(head) || headerSum(b[4:12], b[blockPrefix:]) != binary.LittleEndian.Uint32(b[12:]) {
		return p, false
	}
	return p, p.header.parse(bytes.Clone(b[blockPrefix:])) == nil
}

// next returns where the next whole block begins, -1 when there is none.
func (w *window) next(s *segment, at int64) int64 {
	for at < w.size {
		b := w.bytes(at, windowSize)
		i := bytes.Index(b, []byte(blockMagic))
		switch {
		case i < 0 && len(b) < len(blockMagic):
			return -1
		case i < 0:
			at += int64(len(b) - len(blockMagic) + 1)
			continue
		}
		at += int64(i)
		if _, ok := w.block(s, at); ok {
			return at
		}
		at++
	}
	return -1
}

// unpacker is what unpacking takes, and its memory.
type unpacker struct {
	*zstd.Decoder
	packed, data []byte
}

// unpack reads the entries of a block. They are valid until the next call
// unless data is taken away before.
func (u *unpacker) unpack(p *place, r io.ReaderAt) ([]byte, error) {
	u.packed = slices.Grow(u.packed[:0], p.size)[:p.size]
	if _, err := r.ReadAt(u.packed, p.at); err != nil {
		return nil, fmt.Errorf("journal: %s: %w", p.segment.path, err)
	}
	if crc32.Checksum(u.packed, castagnoli) != p.sum {
		return nil, fmt.Errorf("%w: wrong sum in %s at %d", errBroken, p.segment.path, p.at)
	}
	data, err := u.DecodeAll(u.packed, slices.Grow(u.data[:0], p.unpacked))
	if err == nil && len(data) != p.unpacked {
		err = errBroken
	}
	if err != nil {
		return nil, fmt.Errorf("journal: %s at %d: %w", p.segment.path, p.at, err)
	}
	u.data = data
	return data, nil
}

func newEncoder() *zstd.Encoder {
	e, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderLevel(zstd.SpeedDefault), zstd.WithWindowSize(1<<20), zstd.WithEncoderCRC(false))
	if err != nil {
		panic(err) // the options are constant
	}
	return e
}

func newDecoder() *zstd.Decoder {
	d, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(2*maxData))
	if err != nil {
		panic(err) // the options are constant
	}
	return d
}
