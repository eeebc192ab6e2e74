"""What users of other tools type, and the flag that does it here.

Names are in lower case, with _ for -. A name that is only spelled otherwise (--normalise) needs no
entry: `common.flags.Parser` finds the nearest flag.
"""

RECIPE = "it is part of a recipe, see PRESETS in config.py"
TORCHRUN = "torchrun main.py ... trains on several GPUs"
_MAIN = {
    "--prune_percent=50 removes 50% of the filters": (
        "pruning_ratio prune_ratio pruning_rate prune_rate ratio sparsity target_sparsity "
        "ch_sparsity channel_sparsity sparsity_ratio final_sparsity pruning_amount amount rate "
        "percent pruning_perc compression"
    ),
    "--prune_percent says how many filters to remove: 30 keeps 70%": (
        "keep_ratio keep_percent remain_ratio density"
    ),
    "--budget=macs --prune_percent=50 removes half of the multiply-adds": (
        "flops target_flops flops_ratio macs target_macs speed_up speedup"
    ),
    "--pruning_type names the method": (
        "method pruner criterion importance prune_method pruning_method importance_criteria"
    ),
    "--n_rounds prunes and retrains in rounds; --score_steps cuts in steps without training": (
        "iterative_steps pruning_steps prune_steps steps n_iters num_iterations iterations"
    ),
    "--ranking says how filters of different layers are compared": (
        "global_pruning global local layerwise scope"
    ),
    "--keep='layer1.*,layer2.0.conv1' keeps layers whole": (
        "exclude exclude_layers ignore ignored_layers ignore_layers skip_layers not_prune"
    ),
    "--penalty is the weight of the orthonormality penalty": (
        "lambda lamda lamb reg reg_strength delta_reg alpha beta ortho ortho_lambda"
    ),
    "--epochs": "epoch num_epochs n_epochs nb_epochs max_epochs total_epochs num_train_epochs",
    "--lr": "learning_rate base_lr initial_lr init_lr lr_init lr0 max_lr",
    "--epochs; --preset says how the epochs before and after the pruning differ": (
        "finetune_epochs ft_epochs retrain_epochs pretrain_epochs epochs_after"
    ),
    f"{RECIPE} (schedule, warmup)": (
        "scheduler lr_scheduler sched lr_schedule lr_policy lr_decay decay_epochs cos_lr cosine "
        "warmup warmup_epochs warmup_steps step_size lr_step lr_step_size milestones gamma min_lr "
        "lr_gamma lr_decay_milestones"
    ),
    f"{RECIPE} (weight_decay)": "weight_decay wd decay l2",
    f"{RECIPE} (label_smoothing)": "label_smoothing smoothing",
    "MOMENTUM in config.py": "momentum nesterov",
    "--optimizer": "optim opt solver",
    "--batch_size": "b bs batch train_batch_size batchsize per_device_train_batch_size",
    "--model": "arch a net network model_name backbone architecture",
    "--data_path": (
        "data d dataset data_dir data_root dataroot dataset_dir dataset_path train_dir root "
        "imagenet_path"
    ),
    "--image_size": (
        "img img_size imgsz imsize input_size resolution crop_size size train_crop_size"
    ),
    "--num_classes needs no value: the folders of the images are the classes": (
        "classes nb_classes n_classes nc"
    ),
    "--normalize": "mean std",
    "--interpolation": "interp resample resampling train_interpolation",
    "--augment and --flip": (
        "aug augmentation auto_augment autoaugment aa randaugment mixup cutmix hflip transforms "
        "random_erase"
    ),
    "--val_percent": "val_split validation_split val_ratio val_size valid_size",
    "--test_percent": "test_split test_size test_ratio train_split split",
    "--init=FILE begins with the weights in a file, --init=DEFAULT with torchvision's or timm's": (
        "weights checkpoint ckpt load load_from load_path finetune restore pretrained_path "
        "pretrained_model initial_checkpoint checkpoint_path"
    ),
    "--out names the folder of all results": (
        "output o output_dir out_dir outdir save save_dir save_path savedir work_dir project name "
        "exp exp_name experiment run_name tag log_dir logdir checkpoint_dir"
    ),
    "--tensorboard=True writes logs; a .csv beside each network has every epoch": (
        "wandb use_wandb mlflow comet neptune logger log tb log_interval print_freq report_to "
        "wandb_project"
    ),
    "--print_config=True shows what would be done": "dry_run dry",
    "--sweep takes a file of flags, and config.py has the recipes": (
        "config cfg config_file yaml hyp opts options"
    ),
    "--seed": "random_seed manual_seed rng_seed s",
    "--deterministic": "cudnn_deterministic reproducible",
    "--device": "gpu gpu_id gpus cuda no_cuda cpu use_cuda use_gpu accelerator",
    TORCHRUN: (
        "ddp distributed world_size local_rank rank nproc_per_node num_gpus devices "
        "multiprocessing_distributed data_parallel sync_bn"
    ),
    "--amp=bfloat16 or float16": "fp16 bf16 half mixed_precision precision use_amp",
    "images are read by as many threads as there are cores; leave it out": (
        "workers num_workers j nw n_workers pin_memory pin_mem prefetch"
    ),
    "--memory": "cache cache_dataset ram",
    "--distill": "kd distillation teacher kd_alpha",
    "--class_weights": "weighted_loss balance balanced weighted",
    "--choose says which epoch is kept; trainings run all of their epochs": (
        "patience early_stop early_stopping save_best"
    ),
    "there are no averaged weights": "ema model_ema swa",
    "gradients are not clipped; a lower --lr, or a warm-up in config.py, helps": (
        "grad_clip clip clip_grad clip_grad_norm gradient_clip_val max_grad_norm"
    ),
    "a larger --batch_size takes its place": (
        "accumulate accumulation_steps grad_accum grad_accum_steps gradient_accumulation_steps "
        "iter_size"
    ),
    "eval.py measures, exports and compares networks": (
        "eval evaluate e test validate test_only test_acc model_path export onnx report latency "
        "predict"
    ),
}
_EVAL = {
    "--model_path": "weights checkpoint ckpt path file load model_file resume pretrained w",
    "--test_acc=True": "acc accuracy top1 test evaluate eval val validate test_only",
    "--per_class=True": "confusion_matrix confusion classwise",
    "--latency=True": "speed benchmark time timing fps throughput profile",
    "--flops=True": "macs params parameters summary flop",
    "--export=FILE.onnx, .pt2 or .safetensors": (
        "onnx format export_onnx to_onnx torchscript include save output out"
    ),
    "--predict=PATH": "image images img source input infer inference",
    "--data_path": "data dataset data_dir data_root val_dir test_dir",
    "--image_size": "img_size imgsz input_size resolution size",
    "--export_opset": "opset opset_version",
    "--device": "gpu gpus cuda cpu",
    "it is measured with 1, 32 and 128 images": "batch_size batch bs b",
}


def _by_name(table):
    return {name: hint for hint, names in table.items() for name in names.split()}


MAIN, EVAL = _by_name(_MAIN), _by_name(_EVAL)
