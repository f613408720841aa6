package image

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"

	"recast/inventory"
	"recast/pack"
)

// AddOptions of Add; the zero value works.
type AddOptions struct {
	Want    inventory.Digest // of the unpacked image; anything else is refused. Empty for none.
	Source  string           // where the bytes come from, for the record
	MaxSize int64            // of the unpacked image, bytes; 0 means the store's
	// SourceSize of what is read, for Progress, bytes; 0 for unknown.
	SourceSize int64
	// Accept is asked once the image is whole and has the wanted digest, before it
	// is kept; its error refuses the image. Nil accepts.
	Accept func(Info) error
	// Progress is told after each MiB of the unpacked image. Nil for nobody.
	Progress func(Progress)
}

// Progress of an Add, in bytes.
type Progress struct {
	Read, ReadTotal int64 // of the source; a total of 0 is unknown
	Unpacked        int64
	Packed          int64
}

// AddSource adds the image from a file's path or an https URL.
func (s *Store) AddSource(ctx context.Context, source string, o AddOptions) (Info, error) {
	if o.Source == "" {
		o.Source = source
	}
	r, size, err := s.openSource(ctx, source)
	if err != nil {
		return Info{}, fmt.Errorf("add image %q: %w", source, err)
	}
	defer r.Close()
	if o.SourceSize == 0 {
		o.SourceSize = size
	}
	return s.Add(ctx, r, o)
}

func (s *Store) openSource(ctx context.Context, source string) (io.ReadCloser, int64, error) {
	u, err := url.Parse(source)
	if err == nil && strings.Contains(source, "://") {
		switch u.Scheme {
		case "https":
			return s.openURL(ctx, source)
		case "file":
			source = u.Path
		default:
			return nil, 0, fmt.Errorf("source has scheme %q; give a file or an https URL", u.Scheme)
		}
	}
	f, err := os.Open(source)
	if err != nil {
		return nil, 0, err
	}
	fi, err := f.Stat()
	if err == nil && fi.IsDir() {
		err = errors.New("it is a folder; give the image file in it")
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, fi.Size(), nil
}

func (s *Store) openURL(ctx context.Context, source string) (io.ReadCloser, int64, error) {
	client := http.Client{}
	if s.o.Client != nil {
		client = *s.o.Client
	}
	client.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		if r.URL.Scheme != "https" {
			return fmt.Errorf("it redirects to %s, which is not https", r.URL.Redacted())
		}
		if len(via) > 10 {
			return errors.New("more than 10 redirects")
		}
		return nil
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, source, nil)
	if err != nil {
		return nil, 0, err
	}
	// The transport would unpack gzip by itself, without a word on truncation.
	req.Header.Set("Accept-Encoding", "identity")
	resp, err := client.Do(req)
	if err != nil {
		return nil, 0, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, 0, fmt.Errorf("the server answers %s", resp.Status)
	}
	return resp.Body, max(0, resp.ContentLength), nil
}

// Add reads one disk image, raw or compressed with gzip, xz or zstd, to its end
// and keeps it. The same image gives the same digest and the same pack however
// it came. An image that is there already is compared with what was read and
// mended where it differs. After an error nothing of it stays.
func (s *Store) Add(ctx context.Context, r io.Reader, o AddOptions) (Info, error) {
	info, err := s.add(ctx, r, o)
	if err != nil {
		if o.Source == "" {
			return Info{}, fmt.Errorf("add image from a stream: %w", err)
		}
		return Info{}, fmt.Errorf("add image %q: %w", o.Source, err)
	}
	return info, nil
}

func (s *Store) add(ctx context.Context, r io.Reader, o AddOptions) (_ Info, err error) {
	if o.MaxSize <= 0 {
		o.MaxSize = s.o.MaxSize
	}
	src := &counter{r: contextReader{ctx, r}}
	unpacked, err := unpack(src)
	if err != nil {
		return Info{}, err
	}
	defer unpacked.Close()
	f, temp, err := s.temp("blobs")
	if err != nil {
		return Info{}, err
	}
	defer func() {
		f.Close()
		if temp != "" {
			s.root.Remove(temp)
		}
	}()
	index, err := pack.Write(ctx, f, unpacked, pack.WriteOptions{MaxSize: o.MaxSize, Progress: func(in, out int64) {
		if o.Progress != nil {
			o.Progress(Progress{Read: src.n.Load(), ReadTotal: o.SourceSize, Unpacked: in, Packed: out})
		}
	}})
	if err != nil {
		return Info{}, err
	}
	m := index.Manifest
	if m.Layout.Scheme == pack.SchemeNone {
		return Info{}, fmt.Errorf("%w: neither a GPT nor an MBR at its start", ErrUnknown)
	}
	digest := inventory.NewDigest(m.Digest)
	if o.Want != "" && o.Want != digest {
		return Info{}, fmt.Errorf("%w: wanted %s, the source holds %s", ErrDigest, o.Want, digest)
	}
	if err := f.Sync(); err != nil {
		return Info{}, err
	}
	if o.Accept != nil {
		if err := o.Accept(Info{Digest: digest, Size: m.Size, PackSize: m.PackSize, Source: o.Source}); err != nil {
			return Info{}, err
		}
	}

	verity, err := findVerity(ctx, m, f)
	if err != nil {
		return Info{}, fmt.Errorf("look at its dm-verity trees: %w", err)
	}

	s.change.Lock()
	info, what, err := s.commit(index, verity, f, temp, o.Source)
	s.change.Unlock()
	if err != nil {
		return Info{}, err
	}
	if what != "" {
		temp = "" // renamed
		s.log.Info("image "+what, "image", digest, "source", o.Source, "size", info.Size, "pack", info.PackSize)
		s.changed(digest)
	}
	return info, nil
}

// commit makes the pack in temp the image's own, unless the store holds a good
// one. what is empty if it does.
func (s *Store) commit(index *pack.Index, verity []Verity, f *os.File, temp, source string) (info Info, what string, err error) {
	m := index.Manifest
	manifest := m.Encode()
	info = Info{
		Digest: inventory.NewDigest(m.Digest), Manifest: inventory.DigestOf(manifest), Pack: inventory.NewDigest(m.Pack),
		Size: m.Size, ManifestSize: int64(len(manifest)), PackSize: m.PackSize, BlockSize: m.BlockSize,
		Added: s.o.Now().UTC(), Source: source, Verity: verity,
	}
	old, err := s.Info(info.Digest)
	known := err == nil
	what = "added"
	if known {
		bad, err := s.compare(old, m, f)
		if err == nil && bad == 0 {
			if old.Damaged == "" && (old.Index == "" || old.Verity == nil) {
				old.Verity = verity
				return s.addFound(old, index)
			}
			if old.Damaged == "" {
				return old, "", nil
			}
		}
		what = fmt.Sprintf("mended, %d of %d frames were bad", bad, len(m.Chunks))
		if err != nil {
			what = "mended: " + err.Error()
		}
		info.Added = old.Added
		if source == "" {
			info.Source = old.Source
		}
	}
	// A crash from here on leaves blobs without a record, which Open removes, or
	// the record with better blobs than before.
	if err := s.root.Rename(temp, "blobs/"+info.Pack.Hex()); err != nil {
		return Info{}, "", err
	}
	undo := func(err error) (Info, string, error) {
		if !known {
			err = errors.Join(err, s.unlink(info.Pack, info.Manifest, info.Index))
		}
		return Info{}, "", err
	}
	if err := s.write("blobs", info.Manifest.Hex(), manifest); err != nil {
		return undo(err)
	}
	if err := s.keepIndex(&info, index); err != nil {
		return undo(err)
	}
	if err := s.writeRecord(info); err != nil {
		return undo(err)
	}
	s.put(info)
	if known {
		// Another version of the compressor gives other blobs for the same image.
		err := s.unlink(old.Pack, old.Manifest, old.Index)
		if old.Manifest != info.Manifest {
			err = errors.Join(err, s.dropDifferences(func(d Difference) bool { return d.To == info.Digest }))
		}
		if err != nil {
			s.log.Warn("blobs of a mended image are left", "image", info.Digest, "err", err)
		}
	}
	return info, what, nil
}

// addFound gives an image that was added before anybody looked for it what is found of it
// now: its index, and its trees.
func (s *Store) addFound(info Info, index *pack.Index) (Info, string, error) {
	err := s.keepIndex(&info, index)
	if err == nil {
		err = s.writeRecord(info)
	}
	if err == nil {
		s.put(info)
	}
	return info, "", err
}

// compare counts the frames of the old pack that are not the right chunk any
// more. fresh is the pack that was just made of the same image.
func (s *Store) compare(old Info, m *pack.Manifest, fresh io.ReaderAt) (bad int, err error) {
	om, err := s.manifest(old)
	if err != nil {
		return 0, err
	}
	f, err := s.root.Open("blobs/" + old.Pack.Hex())
	if err != nil {
		return 0, err
	}
	defer f.Close()
	same := inventory.Digest(old.Pack) == inventory.NewDigest(m.Pack)
	for i := range om.Chunks {
		frame, err := om.ReadFrame(f, i)
		if err != nil {
			bad++
			continue
		}
		if same {
			want, err := m.ReadFrame(fresh, i)
			if err != nil {
				return 0, err
			}
			if !bytes.Equal(frame, want) {
				bad++
			}
		} else if _, err := om.DecodeChunk(i, frame, nil); err != nil {
			bad++
		}
	}
	return bad, nil
}
