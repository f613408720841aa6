// Package image keeps disk images by their digest: it ingests them into packs,
// serves them by Range, builds the differences between them, finds and mends
// damage of its own copy, and builds the ramdisk.
package image

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"recast/inventory"
	"recast/pack"
)

// DefaultMaxSize of an unpacked image, bytes.
const DefaultMaxSize = 64 << 30

// Errors that somebody decides on.
var (
	ErrNotFound = errors.New("no such image")
	ErrDamaged  = errors.New("image is damaged")
	ErrDigest   = errors.New("digests differ")
	ErrUnknown  = errors.New("not a disk image")
)

// DamageOf is what is wrong with an image by an error that is ErrDamaged, without
// saying again that it is damaged.
func DamageOf(err error) string {
	return strings.TrimPrefix(err.Error(), ErrDamaged.Error()+": ")
}

// Options of Open; the zero value works.
type Options struct {
	MaxSize int64        // of an unpacked image, bytes; 0 means DefaultMaxSize
	Log     *slog.Logger // nil discards
	// OnChange is told each image that was added, removed, found damaged or
	// mended, after the fact and with no lock held. Nil for nobody.
	OnChange func(inventory.Digest)
	Client   *http.Client     // for https sources; nil means http.DefaultClient
	Now      func() time.Time // nil means time.Now
}

// Info is what is known of one image without opening it. It is the record that
// stands in images/<digest>.json.
type Info struct {
	Digest       inventory.Digest `json:"digest"`   // of the unpacked image
	Manifest     inventory.Digest `json:"manifest"` // of the manifest blob
	Pack         inventory.Digest `json:"pack"`     // of the pack blob
	Size         int64            `json:"size"`     // unpacked, bytes
	ManifestSize int64            `json:"manifestSize"`
	PackSize     int64            `json:"packSize"`
	BlockSize    int              `json:"blockSize"` // logical, that the image was made for
	Added        time.Time        `json:"added"`
	Source       string           `json:"source,omitempty"`
	// Index is the blob of 4 KiB block sums; empty where none was needed yet.
	Index     inventory.Digest `json:"index,omitempty"`
	IndexSize int64            `json:"indexSize,omitempty"`
	// Verity are its dm-verity trees, each with every other partition; nil: an older
	// recast added it, and nobody has looked.
	Verity []Verity `json:"verity,omitzero"`
	// Damaged names the frame and the file that is wrong; empty for a good image.
	Damaged string `json:"damaged,omitempty"`
}

type record struct {
	Version int `json:"version"`
	Info
}

const recordVersion = 1

// Store is a folder of images: blobs/<hex> holds packs, manifests, block indexes
// and differences, images/<hex>.json one record for each image, and
// differences/<from>-<to>.json one for each difference. A blob without a record is
// garbage. All methods are safe for several goroutines.
type Store struct {
	dir  string // for messages
	root *os.Root
	lock *os.File
	o    Options
	log  *slog.Logger

	change sync.Mutex // held by whoever changes records or referenced blobs
	mu     sync.RWMutex
	images map[inventory.Digest]Info
	// differences that are built; loaded after the images that they are between.
	differences map[pair]Difference
	blobs       map[string]blob // by hex: only what a record refers to

	flights *flights // that build indexes and differences
}

type blob struct {
	image    inventory.Digest
	mimeType string
}

// Open opens the store in dir, making it where it is missing, and removes what
// a crash left behind. One process at a time.
func Open(dir string, o Options) (*Store, error) {
	if o.MaxSize <= 0 {
		o.MaxSize = DefaultMaxSize
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	for _, d := range []string{dir, path.Join(dir, "blobs"), path.Join(dir, "images"), path.Join(dir, "differences")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return nil, fmt.Errorf("open the image store: %w", err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the image store: %w", err)
	}
	s := &Store{
		dir: dir, root: root, o: o, log: o.Log,
		images: map[inventory.Digest]Info{}, differences: map[pair]Difference{}, blobs: map[string]blob{},
		flights: newFlights(),
	}
	if s.lock, err = root.OpenFile("lock", os.O_CREATE|os.O_RDWR, 0o600); err != nil {
		root.Close()
		return nil, fmt.Errorf("open the image store: %w", err)
	}
	if err := syscall.Flock(int(s.lock.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		s.Close()
		return nil, fmt.Errorf("open the image store %q: another process holds it; stop that one first", dir)
	}
	if err := s.load(); err != nil {
		s.Close()
		return nil, fmt.Errorf("open the image store %q: %w", dir, err)
	}
	return s, nil
}

// errClosed ends what was being built.
var errClosed = errors.New("the server stops")

// Close ends what is being built, and lets another process open the store.
func (s *Store) Close() error {
	s.flights.end()
	return errors.Join(s.lock.Close(), s.root.Close())
}

// load reads the records and removes every file that none refers to.
func (s *Store) load() error {
	names, err := s.readDir("images")
	if err != nil {
		return err
	}
	unreadable := 0
	for _, name := range names {
		if strings.HasPrefix(name, tempPrefix) {
			s.log.Info("removing what a crash left", "file", "images/"+name)
			s.root.Remove("images/" + name)
			continue
		}
		info, err := s.readRecord(name)
		if err != nil {
			unreadable++
			s.log.Error("image record cannot be read; the image is not served, add it again", "file", s.dir+"/images/"+name, "err", err)
			continue
		}
		for _, b := range []struct {
			what string
			hex  string
			size int64
		}{{"manifest", info.Manifest.Hex(), info.ManifestSize}, {"pack", info.Pack.Hex(), info.PackSize}} {
			fi, err := s.root.Stat("blobs/" + b.hex)
			if info.Damaged != "" {
				continue
			}
			if err != nil {
				info.Damaged = fmt.Sprintf("%s %s cannot be opened: %v", b.what, s.blobPath(b.hex), err)
			} else if fi.Size() != b.size {
				info.Damaged = fmt.Sprintf("%s %s has %d bytes instead of %d", b.what, s.blobPath(b.hex), fi.Size(), b.size)
			}
			if info.Damaged != "" {
				s.log.Error("image is damaged; add it again to mend it", "image", info.Digest, "reason", info.Damaged)
			}
		}
		if info.Index != "" {
			// It can be made again: an older recast, which knows of none, removes it.
			if fi, err := s.root.Stat("blobs/" + info.Index.Hex()); err != nil || fi.Size() != info.IndexSize {
				s.log.Info("block index is gone and is made anew when it is needed", "image", info.Digest)
				info.Index, info.IndexSize = "", 0
			}
		}
		s.put(info)
	}
	if err := s.loadDifferences(); err != nil {
		return err
	}
	blobs, err := s.readDir("blobs")
	if err != nil {
		return err
	}
	for _, name := range blobs {
		if _, ok := s.blobs[name]; ok {
			continue
		}
		// A record that we cannot read may refer to this one.
		if unreadable > 0 && !strings.HasPrefix(name, tempPrefix) {
			continue
		}
		s.log.Info("removing what a crash left", "file", "blobs/"+name)
		if err := s.root.Remove("blobs/" + name); err != nil {
			return err
		}
	}
	return nil
}

func (s *Store) readRecord(name string) (Info, error) {
	b, err := s.root.ReadFile("images/" + name)
	if err != nil {
		return Info{}, err
	}
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return Info{}, err
	}
	if r.Version != recordVersion {
		return Info{}, fmt.Errorf("version %d, this recast reads %d", r.Version, recordVersion)
	}
	if name != r.Digest.Hex()+".json" || r.Digest == "" || r.Pack == "" || r.Manifest == "" {
		return Info{}, fmt.Errorf("it does not belong to image %q", r.Digest)
	}
	return r.Info, nil
}

func (s *Store) readDir(name string) ([]string, error) {
	entries, err := fs.ReadDir(s.root.FS(), name)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

func (s *Store) blobPath(hex string) string { return path.Join(s.dir, "blobs", hex) }

// Info tells what is known of image d.
func (s *Store) Info(d inventory.Digest) (Info, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	info, ok := s.images[d]
	if !ok {
		return Info{}, fmt.Errorf("%w: %s; add it with: recast image add", ErrNotFound, d)
	}
	return info, nil
}

// List tells of every image, oldest first.
func (s *Store) List() []Info {
	s.mu.RLock()
	defer s.mu.RUnlock()
	var all []Info
	for _, info := range s.images {
		all = append(all, info)
	}
	slices.SortFunc(all, func(a, b Info) int {
		if c := a.Added.Compare(b.Added); c != 0 {
			return c
		}
		return strings.Compare(string(a.Digest), string(b.Digest))
	})
	return all
}

// Remove forgets image d with the differences from and to it, and deletes their
// blobs. Transfers that are under way end well.
func (s *Store) Remove(d inventory.Digest) error {
	s.change.Lock()
	info, err := s.Info(d)
	if err == nil {
		err = s.dropDifferences(func(x Difference) bool { return x.From == d || x.To == d })
	}
	if err == nil {
		// The record goes first: a crash between leaves garbage, which Open removes.
		if err = s.root.Remove("images/" + d.Hex() + ".json"); err == nil {
			err = s.syncDir("images")
		}
	}
	if err == nil {
		s.drop(info)
		err = s.unlink(info.Manifest, info.Pack, info.Index)
	}
	s.change.Unlock()
	if err != nil {
		return fmt.Errorf("remove image %s: %w", d.Short(), err)
	}
	s.log.Info("image removed", "image", d)
	s.changed(d)
	return nil
}

// Manifest reads the manifest of image d and checks it against its digest.
func (s *Store) Manifest(d inventory.Digest) (*pack.Manifest, error) {
	info, err := s.Info(d)
	if err != nil {
		return nil, err
	}
	return s.manifest(info)
}

func (s *Store) manifest(info Info) (*pack.Manifest, error) {
	b, err := s.root.ReadFile("blobs/" + info.Manifest.Hex())
	if err != nil {
		return nil, fmt.Errorf("%w: manifest %s cannot be read: %w", ErrDamaged, s.blobPath(info.Manifest.Hex()), err)
	}
	if got := inventory.DigestOf(b); got != info.Manifest {
		return nil, fmt.Errorf("%w: manifest %s has digest %s", ErrDamaged, s.blobPath(info.Manifest.Hex()), got)
	}
	m, err := pack.ParseManifest(b)
	if err != nil {
		return nil, fmt.Errorf("%w: manifest %s: %w", ErrDamaged, s.blobPath(info.Manifest.Hex()), err)
	}
	return m, nil
}

// put and drop change what is served; the caller holds change.
func (s *Store) put(info Info) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.images[info.Digest] = info
	s.refer()
}

func (s *Store) drop(info Info) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.images, info.Digest)
	s.refer()
}

// refer lists anew what the records refer to: two of them may share a blob. The
// caller holds mu.
func (s *Store) refer() {
	s.blobs = map[string]blob{}
	refer := func(d, image inventory.Digest, mimeType string) {
		if d != "" {
			s.blobs[d.Hex()] = blob{image, mimeType}
		}
	}
	for _, x := range s.differences {
		refer(x.List, x.To, "application/octet-stream")
		refer(x.Pack, x.To, "application/zstd")
	}
	for _, info := range s.images {
		refer(info.Index, info.Digest, "application/zstd")
		refer(info.Manifest, info.Digest, "application/json")
		refer(info.Pack, info.Digest, "application/zstd")
	}
}

func (s *Store) changed(d inventory.Digest) {
	if s.o.OnChange != nil {
		s.o.OnChange(d)
	}
}

const tempPrefix = "tmp-"

// temp makes a file that Open removes if nobody renames it.
func (s *Store) temp(dir string) (*os.File, string, error) {
	name := dir + "/" + tempPrefix + rand.Text()
	f, err := s.root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o644)
	return f, name, err
}

// write puts b into dir/name by write, sync, rename, sync of the folder.
func (s *Store) write(dir, name string, b []byte) error {
	f, temp, err := s.temp(dir)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = s.root.Rename(temp, dir+"/"+name)
	}
	if err != nil {
		return errors.Join(err, s.root.Remove(temp))
	}
	return s.syncDir(dir)
}

func (s *Store) writeRecord(info Info) error {
	b, err := json.MarshalIndent(record{recordVersion, info}, "", "  ")
	if err != nil {
		return err
	}
	return s.write("images", info.Digest.Hex()+".json", append(b, '\n'))
}

func (s *Store) syncDir(dir string) error {
	f, err := s.root.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// unlink deletes blobs that no record refers to any more; the caller holds change.
func (s *Store) unlink(blobs ...inventory.Digest) (err error) {
	for _, d := range blobs {
		s.mu.RLock()
		_, used := s.blobs[d.Hex()]
		s.mu.RUnlock()
		if d == "" || used {
			continue
		}
		if e := s.root.Remove("blobs/" + d.Hex()); e != nil && !errors.Is(e, fs.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	return err
}

// contextReader ends a read between two calls when ctx is done.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := context.Cause(c.ctx); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}
