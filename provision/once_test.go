package provision

import (
	"errors"
	"fmt"
	"sync"
	"testing"
)

// While one image is read for many machines, those of another image do not wait, nor is
// it read for each of them.
func TestWhoNeedsAnotherImageWaitsForNoReading(t *testing.T) {
	var o once[int]
	reading, ends := make(chan struct{}), make(chan struct{})
	var slow sync.WaitGroup
	reads := 0
	for range 20 {
		slow.Go(func() {
			v, err := o.get("slow", func() (int, error) {
				reads++
				close(reading)
				<-ends
				return 7, nil
			})
			if v != 7 || err != nil {
				t.Errorf("%d, %v", v, err)
			}
		})
	}
	<-reading
	if v, err := o.get("other", func() (int, error) { return 8, nil }); v != 8 || err != nil { // hangs where it waits
		t.Errorf("%d, %v", v, err)
	}
	close(ends)
	slow.Wait()
	if v, err := o.get("slow", func() (int, error) { return 9, nil }); v != 7 || err != nil || reads != 1 {
		t.Errorf("%d, %v; made %d times", v, err, reads)
	}
}

func TestWhatCouldNotBeMadeIsTriedAgain(t *testing.T) {
	o := once[int]{most: 3}
	if _, err := o.get("a", func() (int, error) { return 0, errors.New("not here") }); err == nil {
		t.Error("no error")
	}
	if v, err := o.get("a", func() (int, error) { return 1, nil }); v != 1 || err != nil {
		t.Errorf("%d, %v", v, err)
	}
	for i := range 100 {
		if v, err := o.get(fmt.Sprint(i), func() (int, error) { return i, nil }); v != i || err != nil || len(o.made) > 3 {
			t.Fatalf("%d: %d, %v, %d are kept", i, v, err, len(o.made))
		}
	}
}
