"""Convert a network, train it for a few seconds, move the slider, fold it: runs anywhere.

python examples/quickstart.py
"""

import torch

import tunable_ops


def main() -> None:
    """Print what the slider does to a small network."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # with pictures so small, threads would mostly wait for one another
    print("training for 100 steps, a few seconds", flush=True)
    plain = tunable_ops.models.DnCNN(features=16, depth=4, mean=0.5)  # any network: this one starts near its input
    net = tunable_ops.convert(plain, num_params=2, names=("denoise", "keep"))
    loss = tunable_ops.losses.MultiLoss({"clean": tunable_ops.losses.mse, "noisy": tunable_ops.losses.mse})
    draw = tunable_ops.losses.sampler("simplex", num_params=2, corners=0.3)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)

    for _ in range(100):
        clean = torch.nn.functional.interpolate(torch.rand(4, 3, 4, 4), size=16, mode="bilinear")
        noisy = clean + 0.1 * torch.randn_like(clean)
        lam = draw(4)  # one for each picture; they sum to 1
        total, _ = loss(net(noisy, lam), {"clean": clean, "noisy": noisy}, lam)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()

    with torch.no_grad():
        for denoise in (0.0, 0.5, 1.0):
            output = net(noisy, {"denoise": denoise})  # the other gets the rest
            clean_error, noisy_error = (float((output - t).square().mean().sqrt()) for t in (clean, noisy))
            print(f"denoise {denoise:.1f}: {clean_error:.4f} from the clean pictures, {noisy_error:.4f} from the noisy")
        plain = tunable_ops.fold(net, [0.8, 0.2])
        difference = (plain(noisy) - net(noisy, [0.8, 0.2])).abs().max()
        print(f"folded: {type(plain).__name__}, {float(difference):.0e} from the tunable network")


if __name__ == "__main__":
    main()
