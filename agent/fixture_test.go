package agent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/json"
	"errors"
	"hash/crc32"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
	"unicode/utf16"

	"github.com/klauspost/compress/zstd"

	"recast/inventory"
	"recast/pack"
	"recast/tpm"
)

// gptImage makes a disk image of size bytes with an EFI system partition and a
// root partition, some of it random, some of it holes.
func gptImage(t testing.TB, size int64, seed uint64) []byte {
	t.Helper()
	img := make([]byte, size)
	r := mrand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	for off := int64(MiB); off < size; off += MiB {
		if off/MiB%3 == 1 {
			continue // a hole
		}
		r.Read(img[off:min(off+MiB, size)])
	}
	r.Read(img[size-MiB : size-MiB/2])
	copy(img, "boot code")
	blocks := uint64(size / 512)

	entries := make([]byte, 128*128)
	part := func(i int, typ pack.GUID, name string, first, last uint64) {
		e := entries[i*128:]
		copy(e, typ[:])
		copy(e[16:], bytes.Repeat([]byte{byte(i + 1)}, 16))
		binary.LittleEndian.PutUint64(e[32:], first)
		binary.LittleEndian.PutUint64(e[40:], last)
		for k, c := range utf16.Encode([]rune(name)) {
			binary.LittleEndian.PutUint16(e[56+2*k:], c)
		}
	}
	part(0, pack.TypeESP, "esp", 2048, 4095)
	part(1, pack.TypeLinux, "root", 4096, blocks-2048)
	header := func(here, other, table uint64) []byte {
		h := make([]byte, 92)
		copy(h, "EFI PART\x00\x00\x01\x00")
		binary.LittleEndian.PutUint32(h[12:], 92)
		binary.LittleEndian.PutUint64(h[24:], here)
		binary.LittleEndian.PutUint64(h[32:], other)
		binary.LittleEndian.PutUint64(h[40:], 34)
		binary.LittleEndian.PutUint64(h[48:], blocks-34)
		copy(h[56:], "0123456789abcdef")
		binary.LittleEndian.PutUint64(h[72:], table)
		binary.LittleEndian.PutUint32(h[80:], 128)
		binary.LittleEndian.PutUint32(h[84:], 128)
		binary.LittleEndian.PutUint32(h[88:], crc32.ChecksumIEEE(entries))
		binary.LittleEndian.PutUint32(h[16:], crc32.ChecksumIEEE(h))
		return h
	}
	copy(img[512:], header(1, blocks-1, 2))
	copy(img[1024:], entries)
	copy(img[size-33*512:], entries)
	copy(img[size-512:], header(blocks-1, 1, blocks-33))
	copy(img[446:], []byte{0, 0, 2, 0, 0xee, 0xff, 0xff, 0xff, 1, 0, 0, 0})
	binary.LittleEndian.PutUint32(img[458:], uint32(blocks-1))
	img[510], img[511] = 0x55, 0xaa
	return img
}

// packed is an image with its artefacts.
type packed struct {
	img      []byte
	m        *pack.Manifest
	x        *pack.Index
	pack     []byte
	manifest []byte
	index    []byte
}

func packImage(t testing.TB, img []byte) *packed {
	t.Helper()
	layout, block, err := pack.ParseLayout(img[:MiB], int64(len(img)))
	if err != nil {
		t.Fatal(err)
	}
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		t.Fatal(err)
	}
	p := &packed{img: img, m: &pack.Manifest{Size: int64(len(img)), Digest: sha256.Sum256(img), BlockSize: block, Layout: layout}}
	for off := 0; off < len(img); off += MiB {
		chunk := img[off:min(off+MiB, len(img))]
		frame := enc.EncodeAll(chunk, nil)
		p.m.Chunks = append(p.m.Chunks, pack.Chunk{Sum: sha256.Sum256(chunk), Offset: int64(len(p.pack)), Length: len(frame)})
		p.pack = append(p.pack, frame...)
	}
	p.m.Pack, p.m.PackSize = sha256.Sum256(p.pack), int64(len(p.pack))
	p.manifest = p.m.Encode()
	if p.m, err = pack.ParseManifest(p.manifest); err != nil {
		t.Fatal(err)
	}
	p.x, err = pack.NewIndex(context.Background(), p.m, p.chunk)
	if err != nil {
		t.Fatal(err)
	}
	p.index = p.x.Encode()
	return p
}

func (p *packed) chunk(i int) ([]byte, error) { return p.img[i*MiB:][:p.m.ChunkLen(i)], nil }

func (p *packed) job(urls ...string) inventory.JobImage {
	return inventory.JobImage{
		Digest: inventory.Digest(p.m.Digest.String()), Size: p.m.Size,
		Manifest: inventory.DigestOf(p.manifest), Pack: inventory.Digest(p.m.Pack.String()), URLs: urls,
	}
}

// bytesServer serves an image's artefacts and can be told to misbehave.
type bytesServer struct {
	*httptest.Server
	p     *packed
	mu    sync.Mutex
	files map[string]servedFile // by the hex of their digests
	// spoil is asked with each body before it is sent.
	spoil func(kind string, off int64, body []byte) []byte
	// refuse is asked before anything is sent; a status above 0 is the answer.
	refuse func(kind string) int
	ranges int
}

func serveBytes(t testing.TB, p *packed) *bytesServer {
	t.Helper()
	s := &bytesServer{p: p, files: map[string]servedFile{}}
	s.serve("manifest", p.manifest)
	s.serve("pack", p.pack)
	s.serve("index", p.index)
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		defer s.mu.Unlock()
		file, ok := s.files[strings.TrimPrefix(r.URL.Path, "/")]
		if !ok {
			http.NotFound(w, r)
			return
		}
		kind, content := file.kind, file.content
		if s.refuse != nil {
			if code := s.refuse(kind); code > 0 {
				http.Error(w, "not now", code)
				return
			}
		}
		if kind == "pack" {
			s.ranges++
		}
		rec := httptest.NewRecorder()
		http.ServeContent(rec, r, "", time.Time{}, bytes.NewReader(content))
		body := rec.Body.Bytes()
		if s.spoil != nil {
			var off int64
			if cr := rec.Header().Get("Content-Range"); cr != "" {
				for _, c := range cr[len("bytes "):] {
					if c < '0' || c > '9' {
						break
					}
					off = off*10 + int64(c-'0')
				}
			}
			body = s.spoil(kind, off, bytes.Clone(body))
		}
		for k, v := range rec.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(rec.Code)
		w.Write(body) // shorter than Content-Length: the connection breaks
	}))
	t.Cleanup(s.Close)
	return s
}

type servedFile struct {
	kind    string
	content []byte
}

func (s *bytesServer) serve(kind string, content []byte) inventory.Digest {
	d := inventory.DigestOf(content)
	s.files[d.Hex()] = servedFile{kind, content}
	return d
}

// diskFile makes a plain file of size bytes, filled with fill, as a disk.
func diskFile(t testing.TB, size int64, fill byte) (Disk, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if err := os.WriteFile(path, bytes.Repeat([]byte{fill}, int(size)), 0o600); err != nil {
		t.Fatal(err)
	}
	d, err := OpenFile(path, inventory.DiskID{Serial: "S1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, path
}

func aliveLease() *Lease {
	l := NewLease(nil)
	l.Renew(time.Now(), 3600)
	return l
}

func noWait(int) time.Duration { return 0 }

// testWork is a complete job for the disk: image, config volume, a lease.
func testWork(p *packed, d Disk, volume []byte, urls ...string) Work {
	w := Work{
		Job: inventory.Job{
			Kind: inventory.JobWrite, Machine: "m1", Fence: 7, Attempt: 1, Image: p.job(urls...),
			Disk: inventory.DiskID{Serial: "S1", Size: d.Size(), LogicalBlockSize: 512},
		},
		Disk: d, Lease: aliveLease(), Progress: &Progress{}, Workers: 3, wait: noWait, turn: 3,
	}
	if volume != nil {
		w.Job.Config = &inventory.JobConfig{Digest: inventory.DigestOf(volume), Size: int64(len(volume)), Label: "CIDATA"}
		w.Config = func(context.Context, int64) ([]byte, error) { return volume, nil }
	}
	return w
}

// wantDisk is what the whole disk must hold after a write over fill.
func wantDisk(t testing.TB, p *packed, size int64, fill byte, volume []byte) []byte {
	t.Helper()
	var part *pack.ConfigPart
	if volume != nil {
		part = &pack.ConfigPart{Size: int64(len(volume)), Label: "CIDATA"}
	}
	table, err := pack.RenderTable(p.m, func(i int) ([]byte, error) {
		return p.img[i*MiB : min((i+1)*MiB, len(p.img))], nil
	}, size, 512, part)
	if err != nil {
		t.Fatal(err)
	}
	want := bytes.Repeat([]byte{fill}, int(size))
	copy(want, p.img)
	for i, c := range table.Chunks {
		copy(want[i*MiB:], c.Disk)
	}
	if volume != nil {
		clear(want[table.ConfigStart : table.ConfigStart+table.ConfigSize])
		copy(want[table.ConfigStart:], volume)
	}
	copy(want, table.First)
	copy(want[size-MiB:], table.Last)
	return want
}

func readAll(t testing.TB, d Disk) []byte {
	t.Helper()
	b := make([]byte, d.Size())
	if _, err := d.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	return b
}

func allZero(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }

// authority is a CA with one server certificate for 127.0.0.1.
func authority(t testing.TB) (ca inventory.Digest, caPEM *x509.Certificate, server tls.Certificate) {
	t.Helper()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test CA"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, caKey.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	caCert, err := x509.ParseCertificate(caDER)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: tmpl.NotBefore, NotAfter: tmpl.NotAfter,
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	leafDER, err := x509.CreateCertificate(rand.Reader, leaf, caCert, key.Public(), caKey)
	if err != nil {
		t.Fatal(err)
	}
	return inventory.DigestOf(caDER), caCert, tls.Certificate{Certificate: [][]byte{leafDER, caDER}, PrivateKey: key}
}

// fakeServer plays the server's side of the agent API.
type fakeServer struct {
	*httptest.Server
	ca inventory.Digest
	mu sync.Mutex

	orders  []inventory.Order // handed out in turn; the last one stays
	reports []inventory.Report
	claims  []inventory.Claim
	facts   []inventory.Facts
	booted  []inventory.BootReport
	volume  []byte
	// answer, where set, is asked first; true means that it has answered.
	answer func(w http.ResponseWriter, r *http.Request) bool
	// reply answers a report.
	reply func(inventory.Report) inventory.ReportReply
}

func startServer(t testing.TB) *fakeServer {
	t.Helper()
	ca, _, cert := authority(t)
	s := &fakeServer{ca: ca, reply: func(inventory.Report) inventory.ReportReply {
		return inventory.ReportReply{LeaseSeconds: 300}
	}}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *fakeServer) serve(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.answer != nil && s.answer(w, r) {
		return
	}
	send := func(v any) { json.NewEncoder(w).Encode(v) }
	get := func(v any) { json.NewDecoder(r.Body).Decode(v) }
	if r.URL.Path != "/agent/v1/claim" && r.URL.Path != "/agent/v1/discover" {
		if auth := r.Header.Get("Authorization"); auth != "Bearer token-1" && auth != "Bearer stranger" {
			http.Error(w, `{"title":"unauthorized"}`, http.StatusUnauthorized)
			return
		}
	}
	switch r.Method + " " + r.URL.Path {
	case "POST /agent/v1/claim":
		var c inventory.Claim
		get(&c)
		s.claims = append(s.claims, c)
		if c.Nonce != "n1" {
			w.WriteHeader(http.StatusForbidden)
			send(map[string]string{"title": "Forbidden", "detail": "the nonce is not this machine's"})
			return
		}
		send(inventory.ClaimReply{Machine: "m1", Token: "token-1", LeaseSeconds: 300})
	case "POST /agent/v1/discover":
		var d discovery
		get(&d)
		s.facts = append(s.facts, d.Facts)
		send(s.order())
	case "POST /agent/v1/inventory":
		var f inventory.Facts
		get(&f)
		s.facts = append(s.facts, f)
		send(s.order())
	case "GET /agent/v1/order":
		send(s.order())
	case "POST /agent/v1/report":
		var rep inventory.Report
		get(&rep)
		s.reports = append(s.reports, rep)
		send(s.reply(rep))
	case "GET /agent/v1/config":
		w.Write(s.volume)
	case "POST /agent/v1/booted":
		var b inventory.BootReport
		get(&b)
		s.booted = append(s.booted, b)
	default:
		http.NotFound(w, r)
	}
}

func (s *fakeServer) order() inventory.Order {
	o := s.orders[0]
	if len(s.orders) > 1 {
		s.orders = s.orders[1:]
	}
	return o
}

// told are the reports so far, in the order in which they came: one of a job's progress
// that was under way when it ended may come after its last.
func (s *fakeServer) told() []inventory.Report {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.reports)
}

// ended is the report that the last job ended with.
func (s *fakeServer) ended(t testing.TB) (last inventory.Report) {
	t.Helper()
	for _, r := range s.told() {
		if r.Step == inventory.AgentDone || r.Step == inventory.AgentFailed {
			last = r
		}
	}
	if last.Step == "" {
		t.Fatalf("no job ended: %+v", s.told())
	}
	return last
}

// simMachine is a machine whose disk is a plain file.
type simMachine struct {
	path string
	id   inventory.DiskID
	vars Variables
	// load takes what a kernel was given to it as; nil refuses any.
	load func(kernel, initrd []byte, args string)
}

func (m simMachine) Facts(context.Context) (inventory.Facts, error) {
	return inventory.Facts{
		SystemVendor: inventory.SystemVendor{SerialNumber: "SN1", UUID: "u-1"},
		Disks:        []inventory.DiskFacts{{Name: m.path, Serial: m.id.Serial}},
	}, nil
}

func (m simMachine) OpenDisk(context.Context, inventory.DiskID) (Disk, error) {
	return OpenFile(m.path, m.id)
}

func (m simMachine) Variables() Variables { return m.vars }

func (m simMachine) TPM() (*tpm.Chip, error) { return nil, nil }

func (m simMachine) LoadKernel(kernel, initrd *os.File, args string) error {
	if m.load == nil {
		return errors.New("key was rejected")
	}
	k, err := io.ReadAll(kernel)
	if err != nil {
		return err
	}
	var i []byte
	if initrd != nil {
		i, err = io.ReadAll(initrd)
	}
	if _, werr := kernel.Write(k); werr == nil {
		return errors.New("the kernel can still be written to")
	}
	m.load(k, i, args)
	return err
}
