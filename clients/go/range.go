package kvstore

import (
	"context"
	"iter"

	pb "github.com/kvstore/kvstore/clients/go/gen/kvstore/v1"
)

// What a server takes when a page's limit is left open, unless its operator says otherwise.
const pageSizeUsual = 1000

// Range gives the entries of a range in order, fetching page after page as the loop goes. Each page is a call with its own deadline and
// retries. After an error the loop ends. Ranging over the result again starts anew.
// Options: [WithPrefix], [WithStart], [WithEnd], [WithLimit], [WithReverse], [WithKeysOnly], [WithPageSize], [WithConsistency].
func (c *Client) Range(ctx context.Context, given ...Option) iter.Seq2[*Entry, error] {
	return func(yield func(*Entry, error) bool) {
		o, err := rangeOptions(callRange, given)
		if err != nil {
			yield(nil, err)
			return
		}
		request := &pb.RangeRequest{
			StartKey: o.start, EndKey: o.end, Prefix: o.prefix, Reverse: o.reverse, KeysOnly: o.keysOnly, Consistency: o.consistency,
		}
		for left := o.limit; ; {
			request.Limit = pageLimit(left, o.pageSize)
			page, err := invoke(ctx, c, read, request, pb.KvServiceClient.Range)
			if err != nil {
				yield(nil, err)
				return
			}
			items := page.GetItems()
			if left != nil {
				items = items[:min(*left, uint64(len(items)))]
			}
			for _, item := range items {
				if !yield(entryOf(item), nil) {
					return
				}
			}
			request.PageToken = page.GetNextPageToken()
			if left = leftAfter(left, len(items)); request.PageToken == "" || left != nil && *left == 0 {
				return
			}
		}
	}
}

// pageLimit is what a page may hold: no more than is left to give, and than the caller wants at a time. Nil: the server's default, which its
// operator may have set above or below the usual one.
func pageLimit(left *uint64, pageSize *uint32) *uint32 {
	size := uint32(pageSizeUsual)
	if pageSize != nil {
		size = *pageSize
	}
	if left == nil || *left >= uint64(size) {
		return pageSize
	}
	limit := uint32(*left)
	return &limit
}

func leftAfter(left *uint64, taken int) *uint64 {
	if left == nil {
		return nil
	}
	rest := *left - uint64(taken)
	return &rest
}

// rangeOptions checks what Range and Scan have in common.
func rangeOptions(call calls, given []Option) (options, error) {
	o, err := collect(call, given)
	if err != nil {
		return o, err
	}
	prefix := ""
	if o.prefix != nil {
		prefix = *o.prefix
	}
	return o, checkText(reasonInvalidKey, "a bound of the range", o.start, o.end, prefix)
}
