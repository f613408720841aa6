package image

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"recast/inventory"
	"recast/pack"
)

// release is a disk whose blocks are noise that no other release has, but for
// those it shares: they stand shift blocks further on.
func release(t testing.TB, shift, own int, seed uint64) []byte {
	t.Helper()
	img := disk(t, 8, 0)
	clear(img[pack.MiB : 7*pack.MiB])
	fill := func(b []byte, seed uint64) {
		rng := rand.New(rand.NewPCG(seed, 9))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
	}
	fill(img[pack.MiB+shift*pack.BlockSize:6*pack.MiB], 1)
	fill(img[6*pack.MiB:6*pack.MiB+own*pack.BlockSize], seed)
	return img
}

func filesWith(differences []Difference, infos ...Info) []string {
	all := filesOf(infos...)
	for _, d := range differences {
		all = append(all, d.pair().record())
		if d.List != "" {
			all = append(all, "blobs/"+d.List.Hex(), "blobs/"+d.Pack.Hex())
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

func difference(t testing.TB, s *Store, from, to Info) Difference {
	t.Helper()
	d, err := s.Difference(t.Context(), from.Digest, to.Digest)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestADifferenceIsServedKeptAndCollectedWithItsImages(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	a, b := add(t, s, release(t, 0, 40, 2)), add(t, s, release(t, 3, 40, 3))
	if _, ok := s.Built(a.Digest, b.Digest); ok {
		t.Fatal("it is there before anybody needs it")
	}
	there, back := difference(t, s, a, b), difference(t, s, b, a)
	for _, d := range []Difference{there, back} {
		// Forty blocks of noise of the release's own, and a few around them.
		if d.Fetch < 40*pack.BlockSize || d.Fetch > b.PackSize/4 || d.Write < 4*pack.MiB {
			t.Errorf("fetch %d, write %d of %d", d.Fetch, d.Write, b.PackSize)
		}
	}
	index, err := s.Index(t.Context(), b.Digest)
	if err != nil {
		t.Fatal(err)
	}
	get := func(d inventory.Digest) []byte {
		t.Helper()
		w := httptest.NewRecorder()
		r := httptest.NewRequest("GET", "/"+d.Hex(), nil)
		s.ServeHTTP(w, r)
		if w.Code != 200 || inventory.DigestOf(w.Body.Bytes()) != d {
			t.Fatalf("%s: %d, %d bytes", d.Short(), w.Code, w.Body.Len())
		}
		return w.Body.Bytes()
	}
	list, err := pack.ParseDifference(get(there.List), index)
	if err != nil || inventory.NewDigest(list.From) != a.Digest || inventory.NewDigest(list.Pack) != there.Pack {
		t.Fatalf("list %+v: %v", list, err)
	}
	packed, img := get(there.Pack), release(t, 3, 40, 3)
	for f, c := range list.Frames {
		blocks, err := list.Decode(f, packed[c.Offset:c.Offset+int64(c.Length)], nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := range list.Len(f) {
			at := int(list.Blocks[f*256+i]) * pack.BlockSize
			if !bytes.Equal(blocks[i*pack.BlockSize:][:pack.BlockSize], img[at:at+pack.BlockSize]) {
				t.Fatalf("block %d is not the image's", list.Blocks[f*256+i])
			}
		}
	}
	get(b.Index)

	s.Close()
	for _, left := range []string{"blobs/tmp-X", "differences/tmp-Y", "blobs/" + inventory.DigestOf(nil).Hex(),
		"differences/" + filepath.Base(pair{a.Digest, inventory.DigestOf(nil)}.record())} {
		if err := os.WriteFile(filepath.Join(dir, left), []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = open(t, dir, Options{})
	if diff := cmp.Diff(filesWith([]Difference{there, back}, a, b), files(t, dir)); diff != "" {
		t.Errorf("after a crash (-want +got):\n%s", diff)
	}
	if got, ok := s.Built(a.Digest, b.Digest); !ok || cmp.Diff(there, got) != "" {
		t.Errorf("opened again: %+v", got)
	}
	if err := s.Remove(a.Digest); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(filesOf(b), files(t, dir)); diff != "" || len(s.Differences(b.Digest)) > 0 {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
	if _, err := s.Difference(t.Context(), a.Digest, b.Digest); !errors.Is(err, ErrNotFound) || !strings.Contains(err.Error(), a.Digest.Short()) {
		t.Errorf("from an image that is gone: %v", err)
	}
}

func TestADifferenceIsBuiltOnceWhoeverNeedsIt(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	a, b := add(t, s, release(t, 0, 40, 2)), add(t, s, release(t, 3, 40, 3))
	all := make([]Difference, 8)
	var wg sync.WaitGroup
	for i := range all {
		wg.Go(func() { all[i], _ = s.Difference(context.Background(), a.Digest, b.Digest) })
	}
	wg.Wait()
	for _, d := range all {
		// Added to the nanosecond: one build's.
		if diff := cmp.Diff(all[0], d); diff != "" || d.List == "" {
			t.Fatalf("two were built (-first +other):\n%s", diff)
		}
	}
}

// TestImagesFromBeforeIndexesAreIndexedOnFirstNeed: what an older recast left, and
// what it leaves of ours.
func TestImagesFromBeforeIndexesAreIndexedOnFirstNeed(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	a, b := add(t, s, release(t, 0, 40, 2)), add(t, s, release(t, 3, 40, 3))
	want := difference(t, s, a, b)
	s.Close()
	for _, i := range []Info{a, b} {
		if err := os.Remove(filepath.Join(dir, "blobs", i.Index.Hex())); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Remove(filepath.Join(dir, "blobs", want.Pack.Hex())); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	for _, i := range s.List() {
		if i.Index != "" || i.Damaged != "" {
			t.Errorf("%+v", i)
		}
	}
	if _, ok := s.Built(a.Digest, b.Digest); ok {
		t.Error("a difference without its pack counts")
	}
	got := difference(t, s, a, b)
	if got.Added = want.Added; cmp.Diff(want, got) != "" {
		t.Errorf("built anew (-want +got):\n%s", cmp.Diff(want, got))
	}
	s.Close()
	s = open(t, dir, Options{})
	if diff := cmp.Diff([]Info{a, b}, s.List()); diff != "" {
		t.Errorf("the indexes are not kept (-want +got):\n%s", diff)
	}
	// Adding an image again gives it its index too.
	s.Close()
	if err := os.Remove(filepath.Join(dir, "blobs", b.Index.Hex())); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir, Options{})
	if again := add(t, s, release(t, 3, 40, 3)); !reflect.DeepEqual(again, b) {
		t.Errorf("added again: %+v", again)
	}
}

func TestDifferencesShareWhatIsTheSame(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	a, c := add(t, s, release(t, 0, 40, 2)), add(t, s, release(t, 0, 40, 4))
	b := add(t, s, release(t, 0, 40, 3))
	one, two := difference(t, s, a, b), difference(t, s, c, b)
	if one.Pack != two.Pack {
		t.Fatalf("they lack the same blocks, and get %s and %s", one.Pack.Short(), two.Pack.Short())
	}
	if err := s.Remove(a.Digest); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(filesWith([]Difference{two}, b, c), files(t, dir)); diff != "" {
		t.Errorf("removed (-want +got):\n%s", diff)
	}
}

func TestAFullDiskCostsTheDifferenceAlone(t *testing.T) {
	s, dir := openOn(t, "20m")
	a, b := add(t, s, release(t, 0, 40, 2)), add(t, s, release(t, 3, 250, 3))
	var st syscall.Statfs_t
	if err := syscall.Statfs(dir, &st); err != nil {
		t.Fatal(err)
	}
	free := int64(st.Bavail) * st.Bsize
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, free-100<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Difference(t.Context(), a.Digest, b.Digest); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("%v", err)
	}
	if diff := cmp.Diff(filesOf(a, b), files(t, dir)); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	difference(t, s, a, b) // with room it goes
}

func TestACancelledBuildLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	a, b := add(t, s, release(t, 0, 40, 2)), add(t, s, release(t, 3, 40, 3))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Difference(ctx, a.Digest, b.Digest); !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	s.Close() // waits for it
	if diff := cmp.Diff(filesOf(a, b), files(t, dir)); diff != "" {
		t.Errorf("left behind (-want +got):\n%s", diff)
	}
}

func TestVerifyDropsADamagedIndexAndDifference(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	a, b := add(t, s, release(t, 0, 40, 2)), add(t, s, release(t, 3, 40, 3))
	want := difference(t, s, a, b)
	for _, blob := range []inventory.Digest{b.Index, want.Pack} {
		name := filepath.Join(dir, "blobs", blob.Hex())
		raw, err := os.ReadFile(name)
		if err == nil {
			raw[len(raw)/2] ^= 4
			err = os.WriteFile(name, raw, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Verify(t.Context(), b.Digest); err != nil {
		t.Fatal(err) // the image itself is whole
	}
	if info, err := s.Info(b.Digest); err != nil || info.Index != "" || info.Damaged != "" || len(s.Differences(b.Digest)) > 0 {
		t.Errorf("%+v, %v, %v", info, s.Differences(b.Digest), err)
	}
	got := difference(t, s, a, b)
	if got.Added = want.Added; cmp.Diff(want, got) != "" {
		t.Errorf("built anew (-want +got):\n%s", cmp.Diff(want, got))
	}
	if err := s.Verify(t.Context(), b.Digest); err != nil || len(s.Differences(b.Digest)) != 1 {
		t.Errorf("whole ones are dropped: %v", err)
	}
}

func TestWhereNothingIsSharedNoDifferenceIsMade(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir, Options{})
	other := release(t, 0, 0, 0)
	rng := rand.New(rand.NewPCG(7, 7))
	for i := pack.MiB; i < 6*pack.MiB; i++ {
		other[i] = byte(rng.Uint32())
	}
	a, b := add(t, s, release(t, 0, 40, 2)), add(t, s, other)
	d := difference(t, s, a, b)
	if d.List != "" || d.Write == 0 {
		t.Errorf("%+v", d)
	}
	if diff := cmp.Diff(filesWith([]Difference{d}, a, b), files(t, dir)); diff != "" {
		t.Errorf("files (-want +got):\n%s", diff)
	}
}

// TestABuildHoldsUpNobody: whoever boots, adds or removes does not wait for it.
func TestABuildHoldsUpNobody(t *testing.T) {
	s := open(t, t.TempDir(), Options{})
	a, b := add(t, s, release(t, 0, 40, 2)), add(t, s, release(t, 3, 40, 3))
	ctx, cancel := context.WithCancel(t.Context())
	begun, ended := make(chan struct{}), make(chan error)
	go func() {
		ended <- s.flights.do(ctx, "a long one", func(ctx context.Context) error {
			close(begun)
			<-ctx.Done()
			return nil
		})
	}()
	<-begun
	if _, err := s.Manifest(b.Digest); err != nil {
		t.Error(err)
	}
	if _, err := s.Index(t.Context(), b.Digest); err != nil {
		t.Error(err) // it is there
	}
	w := httptest.NewRecorder()
	if s.ServeHTTP(w, httptest.NewRequest("GET", "/"+b.Pack.Hex(), nil)); w.Code != 200 {
		t.Errorf("status %d", w.Code)
	}
	add(t, s, release(t, 0, 40, 5))
	if err := s.Remove(a.Digest); err != nil || s.Check(t.Context(), b.Digest, 1) != nil {
		t.Error(err)
	}
	cancel()
	<-ended
}
